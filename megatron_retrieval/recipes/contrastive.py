"""What all contrastive training of dual encoders has in common, whatever its pairs of texts come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.examples.batches import BatchSource, Bundles
from megatron_retrieval.data.examples.data_sets import DataSets
from megatron_retrieval.data.layouts.lengths import require_positions
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.errors import ConfigError, MismatchError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.refresh.starting_index import open_given
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.adapting import adapted_run
from megatron_retrieval.training.passage_memory import PassageMemory
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingConfig, TrainingRun
from megatron_retrieval.training.starting_point import find_start, load_start
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.training.steps.embedding_distillation import EmbeddingDistillationConfig
from megatron_retrieval.training.tasks.recall_task import RecallConfig
from megatron_retrieval.training.trainer import Callback, Trainer
from megatron_retrieval.types.contrastive import ContrastiveBatch


@dataclass(kw_only=True, frozen=True)
class DualEncoderTrainingConfig:
    """A dual encoder, where it starts, and how it is trained."""

    pretrained_checkpoint: str | None = field(default=None, metadata=INPUT)
    """Checkpoint whose weights, shape, text layout and vocabulary training starts from: of a dual encoder, or of a
    masked language model, whose encoder goes into both towers; default: random weights."""
    freeze_passage_encoder: bool = False
    """Do not train the encoder of passages, so that embeddings made before stay right."""
    training: TrainingConfig
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    recall: RecallConfig = field(default_factory=RecallConfig)
    distillation: EmbeddingDistillationConfig = field(default_factory=EmbeddingDistillationConfig)
    text_format: TextFormatConfig = field(default_factory=TextFormatConfig)
    model: DualEncoderConfig = field(default_factory=DualEncoderConfig)

    def __post_init__(self) -> None:
        if self.freeze_passage_encoder and self.distillation.distill_evidence is not None:
            raise ConfigError(
                "--distill-evidence teaches the encoder of passages, which --freeze-passage-encoder leaves as it is: "
                "give one of them."
            )
        if self.recall.eval_embeddings is not None and not (self.freeze_passage_encoder and self.pretrained_checkpoint):
            raise ConfigError(
                "--eval-embeddings stay right only where --freeze-passage-encoder keeps the passage encoder of "
                "--pretrained-checkpoint: give both, or leave it out."
            )

    @property
    def parallel(self) -> ParallelConfig:
        """For the launcher."""
        return self.training.parallel

    @cached_property
    def starting_point(self) -> AnyDescription | None:
        """The checkpoint that gives shape, text layout and vocabulary: the resumed one, else the pretrained one."""
        return find_start(DUAL_ENCODER, self.training.save, self.pretrained_checkpoint)

    def with_artefact_defaults(self) -> Self:
        """The starting point's shape and text layout are the defaults of their flags."""
        start = self.starting_point
        if start is None:
            return self
        return dataclasses.replace(
            self,
            model=DUAL_ENCODER.shape_from(start, self.model),
            text_format=DUAL_ENCODER.layout_from(start, self.text_format),
        )


def _eval_embeddings(config: DualEncoderTrainingConfig) -> EmbeddingStore | None:
    """Those that recall is measured with; a resumed run has another encoder, with the same one of passages."""
    if config.recall.eval_embeddings is None:
        return None
    assert config.pretrained_checkpoint is not None
    assert config.recall.eval_evidence is not None
    made_by = DUAL_ENCODER.describe(config.pretrained_checkpoint).fingerprint
    evidence = EvidenceStore(config.recall.eval_evidence)
    return open_given(config.recall.eval_embeddings, evidence, made_by, flag="--eval-embeddings")


MakeCallbacks = Callable[[TrainingRun, DualEncoder, SavedModel], Sequence[Callback]]


class ContrastiveSource(BatchSource[ContrastiveBatch], Protocol):
    """A dataset of questions and passages, which have `Numbers`."""

    def false_negatives(self, questions: Rows, passages: Rows) -> NDArray[np.bool_]:
        """[n, M] bool, where a passage of other batches is no negative of a question."""
        ...


def build_contrastive_trainer(
    config: DualEncoderTrainingConfig,
    topology: ProcessTopology,
    *,
    start: AnyDescription | None,
    tokenizer: Vocabulary,
    examples: ContrastiveSource,
    held_out: BatchSource[ContrastiveBatch] | None,
    identity: dict[str, Any],
    bundles: Bundles | None = None,
    data_sets: DataSets | None = None,
    callbacks: MakeCallbacks = lambda run, model, saved: (),
) -> Trainer:
    """Build the model and make the trainer.

    Args:
        start: where the weights come from; None: random ones.
        tokenizer: its vocabulary travels with the checkpoints.
        examples: to train on.
        held_out: examples for evaluation, in their order.
        identity: see `SavedModel`.
        bundles: see `EpochSampler`.
        data_sets: what the examples are divided into, if they are.
        callbacks: what else is to be done now and then, given the run, the model, and what checkpoints hold.

    Raises:
        ConfigError: texts are longer than the encoder's positions.
        CheckpointError: the starting point does not fit the model.
        MismatchError: the guide reads another vocabulary.
        DataError, MismatchError: recall cannot be measured with the questions or the evidence given.
    """
    training, shape, lengths = config.training, config.model, config.text_format
    require_positions(
        shape.encoder.max_positions,
        query_seq_length=lengths.query_seq_length,
        retriever_seq_length=lengths.retriever_seq_length,
    )
    seed = training.seed
    if start is None:
        encoder = dataclasses.replace(shape.encoder, vocab_size=tokenizer.vocab_size)
        shape = dataclasses.replace(shape, encoder=encoder)
    model = DualEncoder(shape, topology, training.precision.on(topology.device), seed=seed)
    load_start(DUAL_ENCODER, start, model, training.save, topology)
    if config.freeze_passage_encoder:
        model.freeze_passages()
        identity = {**identity, "--freeze-passage-encoder": True}
    guide = _open_guide(config.contrastive, tokenizer, topology, training.precision.on(topology.device))
    recall = config.recall.open(model, config.text_format, tokenizer, _eval_embeddings(config))
    saved = SavedModel(
        DUAL_ENCODER.name,
        DUAL_ENCODER.config(shape, tokenizer, config.text_format),
        tokenizer.assets(),
        identity,
    )
    loss, memory = config.contrastive, None
    if loss.memory_batches:
        memory = PassageMemory(
            loss.memory_batches, loss.memory_start, model.dimension, examples.false_negatives, topology
        )
    run = adapted_run(
        config,
        model,
        start,
        saved,
        topology,
        held_out=held_out,
        tasks=[] if recall is None else [recall],
        callbacks=lambda run, saved: [*([] if memory is None else [memory]), *callbacks(run, model, saved)],
    )
    step = config.distillation.around(
        ContrastiveStep(model, loss, topology, seed, guide, memory),
        model,
        config.text_format,
        tokenizer,
        topology,
        seed=seed,
        micro_batch_size=loss.micro_batch_size,
    )
    return run.trainer(step, examples, bundles, data_sets)


def _open_guide(
    config: ContrastiveConfig, tokenizer: Vocabulary, topology: ProcessTopology, dtype: torch.dtype
) -> DualEncoder | None:
    """What a guided loss takes its similarities from, in evaluation mode.

    Raises:
        CheckpointError: no dual encoder there.
        MismatchError: it reads another vocabulary than the encoder in training.
    """
    if config.guide is None:
        return None
    description = DUAL_ENCODER.describe(config.guide)
    if description.vocabulary().fingerprint != tokenizer.fingerprint:
        raise MismatchError(
            f"--guide {config.guide} reads another vocabulary than the encoder in training, and is given its tokens; "
            "choose a guide with the same vocabulary."
        )
    return description.load(topology, dtype)
