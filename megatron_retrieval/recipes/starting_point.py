"""Where a training run starts: a checkpoint of its own to resume, a pretrained one, or random weights."""

from __future__ import annotations

from collections.abc import Collection

from megatron_retrieval.checkpoint.kinds.starting_point import (
    STARTING_KINDS,
    StartingPoint,
    describe_starting_point,
    load_starting_weights,
)
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.resume import SaveConfig


def find_start(
    save: SaveConfig, pretrained_checkpoint: str | None, kind: str, starting_kinds: Collection[str] = STARTING_KINDS
) -> StartingPoint | None:
    """The checkpoint that gives shape, text layout and vocabulary: the resumed one, else the pretrained one.

    Args:
        kind: of the run's own checkpoints, and hence of the one that it resumes.
        starting_kinds: of the pretrained checkpoint.
    """
    if folder := save.resume_folder():
        return describe_starting_point(folder, (kind,))
    return describe_starting_point(pretrained_checkpoint, starting_kinds) if pretrained_checkpoint else None


def load_start(
    start: StartingPoint | None,
    model: DualEncoder | MaskedLanguageModel | ExtractiveReader,
    save: SaveConfig,
    topology: ProcessTopology,
) -> None:
    """Give the model its first weights, unless they are random or resuming loads them."""
    if start is not None and save.resume_folder() is None:
        load_starting_weights(start, model, topology)
