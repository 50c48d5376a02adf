"""A cross-encoder fine-tuned on questions with a positive and hard negative passages (arXiv 1901.04085, 2101.08751)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from megatron_retrieval.checkpoint.kinds.cross_encoder import CROSS_ENCODER
from megatron_retrieval.checkpoint.kinds.kind import ModelKind
from megatron_retrieval.config.marks import HELD_OUT, INPUT
from megatron_retrieval.data.examples.labelled import require_teacher
from megatron_retrieval.data.examples.ranking import RankingDataConfig, RankingDataset
from megatron_retrieval.data.layouts.lengths import require_positions
from megatron_retrieval.data.layouts.pair import PairFormatConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.adapting import adapted_run
from megatron_retrieval.training.overrides import ModelOverridesConfig
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingConfig
from megatron_retrieval.training.starting_point import FromCheckpoint, load_start
from megatron_retrieval.training.steps.ranking_step import RankingStep, RankingStepConfig
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.training.training_run import run_training


@dataclass(kw_only=True, frozen=True)
class RerankerFinetuneConfig(FromCheckpoint):
    """Fine-tune a cross-encoder on questions with a positive and hard negative passages."""

    pretrained_checkpoint: str | None = field(default=None, metadata=INPUT)
    """Checkpoint whose encoder, vocabulary and, if it is a cross-encoder, head and layout training starts from: of a
    masked language model, a dual encoder (its passage tower), an extractive reader (which reads question and passage
    together already) or a cross-encoder."""
    data: RankingDataConfig
    valid_data: tuple[str, ...] = field(default=(), metadata=HELD_OUT)
    """Held-out files of the same kinds: loss and accuracy among hard negatives during training."""
    training: TrainingConfig
    model: ModelOverridesConfig = field(default_factory=ModelOverridesConfig)
    layout: PairFormatConfig = field(default_factory=PairFormatConfig)
    step: RankingStepConfig = field(default_factory=RankingStepConfig)

    @property
    def start_kind(self) -> ModelKind[Any, Any, Any]:
        """See FromCheckpoint."""
        return CROSS_ENCODER

    def with_artefact_defaults(self) -> RerankerFinetuneConfig:
        """A cross-encoder's layout is the default of its flags; pairs are no longer than the encoder's positions."""
        start = self.starting_point
        layout: PairFormatConfig = start.layout if start.kind is CROSS_ENCODER else self.layout
        longest = start.encoder.shape.max_positions or layout.pair_seq_length
        length = min(layout.pair_seq_length, longest)
        return dataclasses.replace(self, layout=dataclasses.replace(layout, pair_seq_length=length))


def main(config: RerankerFinetuneConfig, topology: ProcessTopology) -> None:
    """Train; leaves configuration, metrics and run record in `--output-dir`."""
    run_training(build, config, topology)


def build(config: RerankerFinetuneConfig, topology: ProcessTopology) -> Trainer:
    """Read the data, build the model, and make the trainer.

    Raises:
        ConfigError: no checkpoint to start from, or pairs longer than its positions.
        DataError, CheckpointError: an input cannot be used.
    """
    training, start, layout = config.training, config.starting_point, config.layout
    seed, vocabulary = training.seed, start.vocabulary()
    shape = CROSS_ENCODER.shape_from(start)
    shape = dataclasses.replace(shape, encoder=config.model.over(shape.encoder))
    require_positions(shape.encoder.max_positions, pair_seq_length=layout.pair_seq_length)
    examples = RankingDataset(config.data, layout, vocabulary, seed)
    held_out = None
    if config.valid_data:
        held_out = RankingDataset(config.data.held_out(config.valid_data), layout, vocabulary, seed)
    if config.step.is_taught:
        require_teacher(f"--ranking-loss {config.step.ranking_loss}", examples, held_out)
    dtype = training.precision.on(topology.device)
    model = CROSS_ENCODER.build(shape, vocabulary.special, topology, dtype, seed=seed)
    load_start(CROSS_ENCODER, start, model, training.save, topology)
    settings = CROSS_ENCODER.config(shape, vocabulary, layout)
    identity = config.data.identity(len(examples))
    saved = SavedModel(CROSS_ENCODER.name, settings, vocabulary.assets(), identity)
    run = adapted_run(config, model, start, saved, topology, held_out=held_out)
    return run.trainer(RankingStep(model, config.step, topology, seed), examples, data_sets=examples.data_sets())
