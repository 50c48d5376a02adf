"""Late interaction fine-tuned on questions with positive and hard negative passages (ColBERT, arXiv 2004.12832)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from megatron_retrieval.checkpoint.kinds.kind import ModelKind
from megatron_retrieval.checkpoint.kinds.late_interaction import LATE_INTERACTION
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.marks import HELD_OUT, INPUT
from megatron_retrieval.data.examples.dpr import DprDataConfig, DprDataset
from megatron_retrieval.data.examples.labelled import require_teacher
from megatron_retrieval.data.layouts.late import LateFormatConfig
from megatron_retrieval.data.layouts.lengths import require_positions
from megatron_retrieval.models.late_interaction import LateInteractionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.late_encoder import LateEncoder
from megatron_retrieval.training.adapting import adapted_run
from megatron_retrieval.training.overrides import ModelOverridesConfig
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingConfig
from megatron_retrieval.training.starting_point import FromCheckpoint, load_start
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.training.training_run import run_training


def _sums_of_cosines() -> ContrastiveConfig:
    return ContrastiveConfig(retriever_score_scaling=False)


@dataclass(kw_only=True, frozen=True)
class LateInteractionFinetuneConfig(Checked, FromCheckpoint):
    """Fine-tune late interaction (ColBERT) on questions with positive and hard negative passages."""

    pretrained_checkpoint: str | None = field(default=None, metadata=INPUT)
    """Checkpoint whose encoder, vocabulary and, if it is of late interaction, linear layer and layout training starts
    from: of a masked language model, a dual encoder (its passage tower) or late interaction."""
    colbert_dim: PositiveInt = 128
    """Width of the tokens' vectors; default: as the checkpoint has it, else 128."""
    data: DprDataConfig
    valid_data: tuple[str, ...] = field(default=(), metadata=HELD_OUT)
    """Held-out files of the same kinds: loss and in-batch accuracy during training."""
    training: TrainingConfig
    model: ModelOverridesConfig = field(default_factory=ModelOverridesConfig)
    layout: LateFormatConfig = field(default_factory=LateFormatConfig)
    contrastive: ContrastiveConfig = field(default_factory=_sums_of_cosines)

    @property
    def start_kind(self) -> ModelKind[Any, Any, Any]:
        """See FromCheckpoint."""
        return LATE_INTERACTION

    def with_artefact_defaults(self) -> LateInteractionFinetuneConfig:
        """The starting point's layout and width are the defaults of their flags."""
        start = self.starting_point
        width = start.shape.colbert_dim if start.kind is LATE_INTERACTION else self.colbert_dim
        return dataclasses.replace(self, colbert_dim=width, layout=LATE_INTERACTION.layout_from(start, self.layout))


def main(config: LateInteractionFinetuneConfig, topology: ProcessTopology) -> None:
    """Train; leaves configuration, metrics and run record in `--output-dir`."""
    run_training(build, config, topology)


def build(config: LateInteractionFinetuneConfig, topology: ProcessTopology) -> Trainer:
    """Read the data, build the model, and make the trainer.

    Raises:
        ConfigError: no checkpoint to start from, or texts longer than its positions.
        DataError, CheckpointError: an input cannot be used.
    """
    training, start, layout = config.training, config.starting_point, config.layout
    seed, vocabulary = training.seed, start.vocabulary()
    shape = LateInteractionConfig(encoder=config.model.over(start.encoder.shape), colbert_dim=config.colbert_dim)
    require_positions(
        shape.encoder.max_positions,
        query_seq_length=layout.query_seq_length,
        retriever_seq_length=layout.retriever_seq_length,
    )
    examples = DprDataset(config.data, layout, vocabulary, seed)
    examples.require_negatives(training.global_batch_size)
    held_out = None
    if config.valid_data:
        held_out = DprDataset(config.data.held_out(config.valid_data), layout, vocabulary, seed)
    if config.contrastive.is_taught:
        loss = f"--contrastive-loss {config.contrastive.contrastive_loss}"
        require_teacher(loss, examples, held_out, has_labels=config.contrastive.label_weight > 0)
    dtype = training.precision.on(topology.device)
    model = LATE_INTERACTION.build(shape, vocabulary.special, topology, dtype, seed=seed)
    load_start(LATE_INTERACTION, start, model, training.save, topology)
    settings = LATE_INTERACTION.config(shape, vocabulary, layout)
    saved = SavedModel(LATE_INTERACTION.name, settings, vocabulary.assets(), config.data.identity(len(examples)))
    run = adapted_run(config, model, start, saved, topology, held_out=held_out)
    step = ContrastiveStep(LateEncoder(model, layout, vocabulary), config.contrastive, topology, seed)
    return run.trainer(step, examples, examples.bundles(), examples.data_sets())
