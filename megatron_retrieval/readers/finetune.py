"""The settings of fine-tuning a reader on questions with the passages that a retriever found for them."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription, ModelKind
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.marks import HELD_OUT, INPUT
from megatron_retrieval.data.examples.batches import BatchSource
from megatron_retrieval.data.files.passage_questions import ReaderTrainingDataConfig
from megatron_retrieval.data.layouts.lengths import within_positions
from megatron_retrieval.evaluation.exact_match import AnswerScoreConfig
from megatron_retrieval.readers.kind import OpenReader, ReaderKind
from megatron_retrieval.readers.settings import ReaderSettings
from megatron_retrieval.training.overrides import ModelOverridesConfig
from megatron_retrieval.training.run import TrainingConfig
from megatron_retrieval.training.starting_point import FromCheckpoint
from megatron_retrieval.training.steps.step import StepModule

OwnReader = TypeVar("OwnReader", bound=OpenReader)


@dataclass(kw_only=True, frozen=True)
class ReaderDataConfig(Checked):
    """Questions to learn from, and questions held out."""

    train: ReaderTrainingDataConfig
    valid_data: tuple[str, ...] = field(default=(), metadata=HELD_OUT)
    """Held-out files of the same kinds: loss, exact match and F1 during training."""
    max_valid_questions: PositiveInt | None = None
    """Use only the first questions of the held-out files; default: all."""

    def held_out(self) -> ReaderTrainingDataConfig | None:
        """The files to evaluate on."""
        if not self.valid_data:
            return None
        return dataclasses.replace(self.train, train_data=self.valid_data, max_train_questions=self.max_valid_questions)


@dataclass(kw_only=True, frozen=True)
class ReaderFinetuneConfig(FromCheckpoint, Generic[OwnReader]):
    """What the fine-tuning of every kind of reader has.

    A kind's own class narrows the types of `layout` and `answers`, and may have further settings.
    """

    pretrained_checkpoint: str | None = field(default=None, metadata=INPUT)
    """Checkpoint whose weights, shape, vocabulary and, if it is a reader of this kind, layout training starts from."""
    data: ReaderDataConfig
    training: TrainingConfig
    model: ModelOverridesConfig = field(default_factory=ModelOverridesConfig)
    layout: Any
    answers: Any
    scoring: AnswerScoreConfig = field(default_factory=AnswerScoreConfig)

    @property
    @abstractmethod
    def kind(self) -> ReaderKind:
        """What is fine-tuned."""

    @abstractmethod
    def examples(self, reader: OwnReader, data: ReaderTrainingDataConfig) -> BatchSource[Any]:
        """The batches of the files' questions.

        Raises:
            DataError: a file is malformed, or there is nothing to learn from it.
        """

    @abstractmethod
    def step_module(self, reader: OwnReader) -> StepModule:
        """What computes the gradients of a batch of `examples`."""

    @property
    def start_kind(self) -> ModelKind[Any, Any, Any]:
        """See FromCheckpoint."""
        return self.kind.checkpoints

    def with_artefact_defaults(self) -> ReaderFinetuneConfig[OwnReader]:
        """A reader's layout is the default of its flags; sequences are no longer than the model's positions."""
        start, checkpoints = self.starting_point, self.kind.checkpoints
        layout = start.layout if start.kind is checkpoints else self.layout
        max_positions = checkpoints.shape_from(start).max_positions
        return dataclasses.replace(self, layout=within_positions(layout, max_positions))

    def settings(self, start: AnyDescription) -> ReaderSettings:
        """What the reader is built with where training starts there."""
        return ReaderSettings(self.model.over(self.kind.checkpoints.shape_from(start)), self.layout, self.answers)
