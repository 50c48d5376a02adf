"""Where a training run starts: a checkpoint of its own to resume, a pretrained one, or random weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription, Description, Model, ModelKind
from megatron_retrieval.checkpoint.kinds.registry import describe
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.training.resume import SaveConfig
from megatron_retrieval.training.run import TrainingConfig


def find_start(
    kind: ModelKind[Any, Any, Any], save: SaveConfig, pretrained_checkpoint: str | None
) -> Description[Any, Any, Any] | None:
    """The checkpoint that gives shape, text layout and vocabulary: the resumed one, else the pretrained one.

    Args:
        kind: of the model to train.
    """
    if folder := save.resume_folder:
        return kind.describe(folder)
    return describe(pretrained_checkpoint, kind.starts_from) if pretrained_checkpoint else None


def require_start(
    kind: ModelKind[Any, Any, Any], save: SaveConfig, pretrained_checkpoint: str | None
) -> Description[Any, Any, Any]:
    """`find_start` of a model that is not trained from random weights.

    Raises:
        ConfigError: there is neither checkpoint.
    """
    if (start := find_start(kind, save, pretrained_checkpoint)) is None:
        kinds = " or ".join(kind.starts_from)
        raise ConfigError(f"nothing to start from: give --pretrained-checkpoint, a {kinds}.")
    return start


class FromCheckpoint(ABC):
    """A job that does not start from random weights."""

    pretrained_checkpoint: str | None
    training: TrainingConfig

    @property
    @abstractmethod
    def start_kind(self) -> ModelKind[Any, Any, Any]:
        """Of the model to train."""

    @property
    def parallel(self) -> ParallelConfig:
        """For the launcher."""
        return self.training.parallel

    @cached_property
    def starting_point(self) -> AnyDescription:
        """The checkpoint that gives shape and vocabulary: the resumed one, else the pretrained one.

        Raises:
            ConfigError: neither is given.
        """
        return require_start(self.start_kind, self.training.save, self.pretrained_checkpoint)


def load_start(
    kind: ModelKind[Any, Any, Model],
    start: Description[Any, Any, Any] | None,
    model: Model,
    save: SaveConfig,
    topology: ProcessTopology,
) -> None:
    """Give the model its first weights, unless they are random or resuming loads them."""
    if start is not None and save.resume_folder is None:
        kind.start(model, start, topology)
