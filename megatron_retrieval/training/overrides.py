"""What training may change of the model that it starts from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, TypeVar

from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.t5_config import T5Config

Shape = TypeVar("Shape", bound=BertConfig | T5Config)


@dataclass(kw_only=True, frozen=True)
class ModelOverridesConfig:
    """How models are run in training, retriever and reader alike; their shapes stay those of the starting point."""

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
