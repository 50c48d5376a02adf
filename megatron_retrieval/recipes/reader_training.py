"""What the training of any reader has in common: what it learns from, and what it may change of its start."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, TypeVar

from megatron_retrieval.data.files.passage_questions import ReaderTrainingDataConfig
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.t5_config import T5Config

Shape = TypeVar("Shape", bound=BertConfig | T5Config)


@dataclass(kw_only=True, frozen=True)
class ReaderDataConfig:
    """Questions to learn from, and questions held out."""

    train: ReaderTrainingDataConfig
    valid_data: tuple[str, ...] = ()
    """Held-out files of the same kinds: loss, exact match and F1 during training."""
    max_valid_questions: int | None = None
    """Use only the first questions of the held-out files; default: all."""

    def held_out(self) -> ReaderTrainingDataConfig | None:
        """The files to evaluate on."""
        if not self.valid_data:
            return None
        return dataclasses.replace(self.train, train_data=self.valid_data, max_train_questions=self.max_valid_questions)


@dataclass(kw_only=True, frozen=True)
class ReaderModelConfig:
    """What training may change of the model that it starts from; its shape stays."""

    hidden_dropout: float | None = None
    """Share of hidden activations dropped in training; default: the starting point's."""
    attention_dropout: float | None = None
    """Share of attention weights dropped in training; default: the starting point's."""
    recompute_granularity: Literal["none", "full"] | None = None
    """full: keep only each layer's input for the backward pass and compute the layer again; less memory, more time.
    Default: the starting point's."""

    def over(self, shape: Shape) -> Shape:
        """The starting point's configuration with what is set here."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(shape, **given)
