"""Computes bytes and seconds from a plan and its rates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from megatron_retrieval.applications.plan import costs
from megatron_retrieval.applications.plan.config import READERS, PlanConfig
from megatron_retrieval.applications.plan.known_rates import Rates, searched_bytes
from megatron_retrieval.applications.plan.reader_costs import reader_activation_bytes, reader_parameters
from megatron_retrieval.applications.plan.retro_plan import RetroEstimate, retro_estimate
from megatron_retrieval.index.approximate.faiss import FaissIndex
from megatron_retrieval.index.store.embedding_store import torch_dtype

#: versions of the index that a checkpoint names: the one searched and the one being made
_NAMED_VERSIONS = 2


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated bytes and seconds.

    Attributes:
        version_bytes: embeddings of all passages, once.
        checkpoint_bytes: of retriever and reader with their moments; 0 without training.
        encoder_bytes: the retriever, saved to make an index version again.
        spans_bytes: the folder of salient spans; 0 where training does not learn from them.
        spans_seconds: to find them.
        index_bytes: the approximate index; None: search is exact.
        rank_index_bytes: a process's part of the vectors that exact search compares with; on CPU they are in 8 bits.
        rank_mapped_bytes: on CPU, its part of the vectors on disk, where candidates are looked up; memory that the
            system lends as long as nobody else needs it.
        background_bytes: of GPU memory, where a process embeds in the background of training; it shares rank 0's GPU.
        state_bytes: weights, gradients and moments of a process; 0 without training, as are activations.
        streamed_seconds: a search whose vectors come from the disk.
    """

    evidence_bytes: int
    version_bytes: int
    checkpoint_bytes: int
    encoder_bytes: int
    spans_bytes: int
    index_bytes: int | None
    rank_index_bytes: int
    rank_mapped_bytes: int
    search_buffer_bytes: int
    background_bytes: int
    state_bytes: int
    activation_bytes: int
    build_seconds: float
    spans_seconds: float
    embed_seconds: float
    refresh_seconds: float
    search_seconds: float
    streamed_seconds: float

    def disk_bytes(self, num_versions: int, num_checkpoints: int = 0) -> int:
        """Evidence, so many versions of the embeddings, the approximate index, and of training at most so many
        checkpoints with the encoders of all versions."""
        encoders = num_encoders(num_versions, num_checkpoints) * self.encoder_bytes
        vectors = num_versions * self.version_bytes + (self.index_bytes or 0)
        return self.evidence_bytes + self.spans_bytes + vectors + num_checkpoints * self.checkpoint_bytes + encoders

    @property
    def device_bytes(self) -> int:
        """Memory of a process that trains, at the moment when it changes from one index to the next."""
        return 2 * self.rank_index_bytes + self.search_buffer_bytes + self.state_bytes + self.activation_bytes


def num_encoders(num_versions: int, num_checkpoints: int) -> int:
    """Encoders on the disk at most: of versions that are there, and of those that are gone but checkpoints name."""
    return num_versions + _NAMED_VERSIONS * num_checkpoints if num_versions > 1 else 0


def estimate(config: PlanConfig, rates: Rates) -> Estimate:
    """Everything that the plan says, out of counts and rates."""
    hardware, dimension = config.hardware, config.encoder.dimension
    value_bytes = torch_dtype(config.embedding_dtype).itemsize
    rank_rows = math.ceil(config.passages / config.num_training_ranks)
    version_bytes = costs.vectors_bytes(config.passages, dimension, value_bytes)
    state, activations = _training_bytes(config)
    retriever, reader = costs.dual_encoder_parameters(config.encoder), _reader_parameters(config)
    has_spans = config.training.salient_spans
    return Estimate(
        evidence_bytes=costs.evidence_bytes(
            config.passages, config.sizes.mean_text_bytes, config.sizes.mean_tokens, config.encoder.encoder.vocab_size
        ),
        version_bytes=version_bytes,
        checkpoint_bytes=costs.checkpoint_bytes(retriever + reader) if reader else 0,
        encoder_bytes=costs.FP32_BYTES * retriever,
        spans_bytes=has_spans
        * costs.spans_bytes(config.passages, config.sizes.mean_text_bytes, config.sizes.mean_tokens),
        index_bytes=index_bytes(config.index_factory, config) if config.index_factory else None,
        rank_index_bytes=costs.vectors_bytes(rank_rows, dimension, searched_bytes(config)),
        rank_mapped_bytes=0 if hardware.gpus else costs.vectors_bytes(rank_rows, dimension, value_bytes),
        search_buffer_bytes=costs.search_buffer_bytes(
            rank_rows, dimension, config.num_queries, on_cpu=not hardware.gpus
        ),
        background_bytes=costs.embedding_process_bytes(
            config.encoder,
            config.encode.micro_batch_size * config.text_format.retriever_seq_length,
            half_precision=config.encode.bf16 or config.encode.fp16,
        ),
        state_bytes=state,
        activation_bytes=activations,
        build_seconds=rates.build_start_seconds + config.passages / (rates.build.value * hardware.num_workers),
        spans_seconds=has_spans * config.passages / (config.rates.tag_passages_per_second * hardware.num_workers),
        embed_seconds=config.passages / (rates.encode.value * hardware.num_ranks),
        refresh_seconds=config.passages
        / (rates.encode.value * (config.training.num_embedding_ranks or hardware.num_ranks)),
        search_seconds=rates.search_start_seconds + rank_rows / rates.search.value,
        streamed_seconds=version_bytes / hardware.nodes / rates.disk.value,
    )


def retro_of(config: PlanConfig, rates: Rates) -> RetroEstimate | None:
    """A RETRO, whose database is searched at the rate of so many queries at once; None: none is planned."""
    if not config.retro.retro_tokens:
        return None
    tokens = costs.encoded_tokens(config.sizes.mean_tokens, config.text_format.retriever_seq_length)
    return retro_estimate(
        config.retro,
        READERS.get(config.retro.retro_base),
        half=config.encode.is_half,
        key_bytes=costs.vectors_bytes(1, config.encoder.dimension, torch_dtype(config.embedding_dtype).itemsize),
        tokens_per_second=rates.encode.value * tokens * config.hardware.num_ranks,
        comparisons_per_second=rates.search.value * config.num_queries * config.hardware.num_ranks,
    )


def index_bytes(factory: str, config: PlanConfig) -> int:
    """An approximate index of all passages; raises ConfigError where faiss makes no such index."""
    return FaissIndex.from_factory(factory, config.encoder.dimension).stored_bytes(config.passages)


def with_recompute(config: PlanConfig) -> PlanConfig:
    """The plan with layers computed again in the backward pass."""
    bert = replace(costs.bert_of(config.encoder), recompute_granularity="full")
    return replace(config, encoder=replace(config.encoder, encoder=bert))


def _reader_parameters(config: PlanConfig) -> int:
    """0 without training."""
    name = config.training.reader
    return 0 if name == "none" else reader_parameters(READERS[name])


def _training_bytes(config: PlanConfig) -> tuple[int, int]:
    """(state, activations) of a process that trains retriever and reader."""
    training, encode, encoder = config.training, config.encode, config.encoder
    if training.reader == "none":
        return 0, 0
    reader = replace(READERS[training.reader], recompute_granularity=costs.bert_of(encoder).recompute_granularity)
    half = encode.is_half
    num_parameters = costs.dual_encoder_parameters(encoder) + _reader_parameters(config)
    num_texts = training.questions_per_gpu * training.num_passages
    tp_size = training.tensor_model_parallel_size
    encoded = costs.retriever_activation_bytes(
        encoder,
        num_texts,
        config.text_format.retriever_seq_length,
        training.passage_batch_size,
        half_precision=half,
        tp_size=tp_size,
    )
    read = reader_activation_bytes(
        reader,
        training.questions_per_gpu,
        training.num_passages,
        training.reader_seq_length,
        training.max_answer_length,
        half=half,
        tp_size=tp_size,
    )
    return costs.training_state_bytes(num_parameters, half_precision=half) // tp_size, encoded + read
