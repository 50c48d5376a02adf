"""Seconds of a training step with its communication, and how old an index gets while the next is made.

Nothing overlaps: gradients are reduced after the backward pass. A ring over all nodes is as fast as its slowest link.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_retrieval.applications.plan import costs
from megatron_retrieval.applications.plan.config import READERS, PlanConfig
from megatron_retrieval.applications.plan.estimate import estimate
from megatron_retrieval.applications.plan.known_rates import Rates, passage_operations
from megatron_retrieval.applications.plan.reader_costs import reader_operations, reader_parameters

#: sums over tensor-parallel ranks of a layer's output: attention and feed-forward part, forward and backward
_SUMS_OF_A_LAYER, _VALUE_BYTES = 4, 2
#: texts of a DPR question: itself, and a positive and a hard negative passage
_DPR_PASSAGES = 2


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """What a training step takes.

    Attributes:
        compute: forward and backward passes.
        search: of the questions of a batch; 0 for a dual encoder alone.
        gather: vectors of the batch, from all ranks to all.
        reduce: gradients over data-parallel ranks.
        layers: sums over tensor-parallel ranks.
    """

    batch_size: int
    compute: float
    search: float
    gather: float
    reduce: float
    layers: float

    @property
    def communication(self) -> float:
        """All that ranks wait for each other's bytes."""
        return self.gather + self.reduce + self.layers

    @property
    def total(self) -> float:
        """The whole step."""
        return self.compute + self.search + self.communication


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """Training beside so many embedding ranks.

    Attributes:
        steps: of training while an index is made; that many steps old is its encoder when the search changes to it,
            and twice as many before the next change.
    """

    num_embedding_ranks: int
    steps_per_second: float
    refresh_seconds: float
    steps: float


def gather_seconds(num_bytes: float, num_ranks: int, bytes_per_second: float) -> float:
    """A ring in which every rank receives all of `num_bytes` but its own part."""
    return num_bytes * (num_ranks - 1) / num_ranks / bytes_per_second


def reduce_seconds(num_bytes: float, num_ranks: int, bytes_per_second: float) -> float:
    """A ring that sums `num_bytes` of every rank: parts are scattered, then gathered (Patarasuk and Yuan 2009)."""
    return 2 * gather_seconds(num_bytes, num_ranks, bytes_per_second)


def step_seconds(config: PlanConfig, rates: Rates) -> StepSeconds | None:
    """A step of the training that is planned: end to end, or a dual encoder's; None without either."""
    training = config.training
    copies = config.num_training_ranks // training.tensor_model_parallel_size
    if training.reader == "none" and training.global_batch_size is None:
        return None
    batch = training.global_batch_size or copies * training.questions_per_gpu
    mine, bert = math.ceil(batch / copies), costs.bert_of(config.encoder)
    link = link_bytes_per_second(config)
    weights, vectors = costs.dual_encoder_parameters(config.encoder), batch
    forward, sums = _retriever_work(config, _DPR_PASSAGES if training.reader == "none" else training.num_passages)
    passes, search = costs.TRAINING_PASSES + costs.AGAIN_PASSES, 0.0
    if training.reader == "none":
        vectors *= 1 + _DPR_PASSAGES
    else:
        passes = costs.TRAINING_PASSES + costs.AGAIN_PASSES * (bert.recompute_granularity == "full")
        reader = READERS[training.reader]
        read, written = training.reader_seq_length, training.max_answer_length
        weights += reader_parameters(reader)
        forward += reader_operations(reader, training.num_passages, read, written)
        sums += _SUMS_OF_A_LAYER * reader.num_layers * training.num_passages * read * reader.hidden_size
        search = math.ceil(batch / config.num_queries) * estimate(config, rates).search_seconds
    # in forward and backward passes, of the reader as of the encoder, whose rate is known
    operations_per_second = rates.train.value * costs.TRAINING_PASSES * passage_operations(config)
    tp_size, nvlink = training.tensor_model_parallel_size, config.rates.nvlink_gb_per_second * 1e9
    return StepSeconds(
        batch_size=batch,
        compute=passes * mine * forward / tp_size / operations_per_second,
        search=search,
        gather=gather_seconds(vectors * config.encoder.dimension * costs.FP32_BYTES, copies, link),
        reduce=reduce_seconds(costs.FP32_BYTES * weights / tp_size, copies, link),
        layers=reduce_seconds(mine * sums * _VALUE_BYTES, tp_size, nvlink),
    )


def _retriever_work(config: PlanConfig, num_passages: int) -> tuple[float, float]:
    """(operations of a forward pass, values that tensor-parallel ranks sum) for a question and its passages."""
    bert, layout = costs.bert_of(config.encoder), config.text_format
    lengths = [layout.query_seq_length] + num_passages * [layout.retriever_seq_length]
    operations = sum(costs.vector_operations(config.encoder, length) for length in lengths)
    return operations, _SUMS_OF_A_LAYER * bert.num_layers * sum(lengths) * bert.hidden_size


def link_bytes_per_second(config: PlanConfig) -> float:
    """The slowest link of a ring over all ranks: the network, or on one node what connects its GPUs."""
    nvlink, network = config.rates.nvlink_gb_per_second, config.rates.network_gb_per_second
    return 1e9 * (nvlink if config.hardware.nodes == 1 else min(nvlink, network))


def staleness(config: PlanConfig, rates: Rates) -> Iterator[Staleness]:
    """One line for each power of two up to half of the ranks, with the same batch; none where nothing is refreshed."""
    if config.training.reader == "none" or (planned := step_seconds(config, rates)) is None:
        return
    number = 1
    while number <= config.hardware.num_ranks // 2:
        if (config.hardware.num_ranks - number) % config.training.tensor_model_parallel_size == 0:
            training = replace(config.training, num_embedding_ranks=number, global_batch_size=planned.batch_size)
            changed = replace(config, training=training)
            step = step_seconds(changed, rates)
            assert step is not None
            refresh = estimate(changed, rates).refresh_seconds
            yield Staleness(
                num_embedding_ranks=number,
                steps_per_second=1 / step.total,
                refresh_seconds=refresh,
                steps=refresh / step.total,
            )
        number *= 2
