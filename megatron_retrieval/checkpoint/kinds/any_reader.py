"""Readers in checkpoints, of whatever kind."""

from __future__ import annotations

from pathlib import Path

from megatron_retrieval.checkpoint.kinds import extractive_reader, fusion_reader
from megatron_retrieval.checkpoint.kinds.extractive_reader import (
    ExtractiveReaderDescription,
    describe_extractive_reader,
)
from megatron_retrieval.checkpoint.kinds.fusion_reader import FusionReaderDescription, describe_fusion_reader
from megatron_retrieval.checkpoint.store.manifest import read_manifest, resolve_checkpoint
from megatron_retrieval.errors import CheckpointError

ReaderDescription = ExtractiveReaderDescription | FusionReaderDescription


def describe_reader(path: str | Path) -> ReaderDescription:
    """Read a checkpoint's description without its weights; a T5 reads as it is.

    Raises:
        CheckpointError: no checkpoint here, or one of something else.
    """
    folder = resolve_checkpoint(path)
    kind = read_manifest(folder).kind
    if kind == extractive_reader.KIND:
        return describe_extractive_reader(folder)
    if kind in fusion_reader.READABLE_KINDS:
        return describe_fusion_reader(folder, fusion_reader.READABLE_KINDS)
    kinds = " or ".join((extractive_reader.KIND, fusion_reader.KIND))
    raise CheckpointError(f"{folder}: holds a {kind}, where a {kinds} is needed.")
