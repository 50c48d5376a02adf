"""The kinds of readers by name, and the one that a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

from megatron_retrieval.checkpoint.kinds.reader import AnyReaderDescription
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.readers.causal import CAUSAL
from megatron_retrieval.readers.extractive import EXTRACTIVE, SPAN
from megatron_retrieval.readers.fusion import FUSION
from megatron_retrieval.readers.kind import ReaderKind
from megatron_retrieval.readers.retro import RETRO
from megatron_retrieval.utils.registry import Registry

READERS: Registry[ReaderKind] = Registry("kind of reader")
READERS.add(EXTRACTIVE)
READERS.add(FUSION)
READERS.add(CAUSAL)
READERS.add(RETRO)
READERS.add(SPAN)


def describe_reader(path: str | Path) -> tuple[ReaderKind, AnyReaderDescription]:
    """Which kind of reader a checkpoint holds, and what it says of itself.

    Raises:
        CheckpointError: no checkpoint here, or one of something else.
    """
    folder = resolve_checkpoint(path)
    saved_as = read_manifest(folder).kind
    for kind in READERS.values():
        if saved_as in kind.checkpoints.reads:
            return kind, kind.checkpoints.describe(folder, kind.checkpoints.reads)
    needed = " or ".join(kind.checkpoints.name for kind in READERS.values())
    raise CheckpointError(f"{folder}: holds a {saved_as}, where a {needed} is needed.")
