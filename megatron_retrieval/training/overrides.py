"""What training may change of the model that it starts from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from megatron_retrieval.errors import ConfigError

Shape = TypeVar("Shape", bound=Any)


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
        """The starting point's configuration with what is set here.

        Raises:
            ConfigError: it has no such setting.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if unknown := given.keys() - {field.name for field in dataclasses.fields(shape)}:
            flag = min(unknown).replace("_", "-")
            raise ConfigError(f"--{flag}: the model that training starts from has no such setting; leave it out.")
        return dataclasses.replace(shape, **given)
