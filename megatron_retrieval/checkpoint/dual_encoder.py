"""Dual encoders in checkpoints: shape, text layout and vocabulary travel with the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_retrieval.checkpoint.manifest import Manifest, read_manifest, resolve_checkpoint
from megatron_retrieval.checkpoint.reader import load_weights
from megatron_retrieval.config import from_flat_dict, to_flat_dict
from megatron_retrieval.data.formatting import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.parallel import ProcessTopology

KIND = "dual-encoder"
VOCAB_NAME = "vocab.txt"


@dataclass(frozen=True)
class DualEncoderDescription:
    """All of a saved dual encoder but its weights.

    Attributes:
        folder: of this one checkpoint.
        lower_case: whether the vocabulary expects lower-cased text.
    """

    folder: Path
    manifest: Manifest
    config: DualEncoderConfig
    text_format: TextFormatConfig
    vocab_file: Path
    lower_case: bool

    @property
    def fingerprint(self) -> str:
        """Names the encoder: the same weights, shape and vocabulary give the same one at any layout of ranks."""
        return self.manifest.fingerprint


@dataclass(frozen=True)
class LoadedDualEncoder:
    """A dual encoder ready to use, and what it says of itself."""

    model: DualEncoder
    description: DualEncoderDescription


def describe_dual_encoder(path: str | Path) -> DualEncoderDescription:
    """Read a checkpoint's description without its weights.

    Raises:
        CheckpointError: no checkpoint here, or one of something else.
    """
    folder = resolve_checkpoint(path)
    manifest = read_manifest(folder)
    if manifest.kind != KIND:
        raise CheckpointError(f"{folder}: holds a {manifest.kind}, where a {KIND} is needed.")
    if not (folder / VOCAB_NAME).is_file():
        raise CheckpointError(f"{folder}: {VOCAB_NAME} is missing.")
    try:
        config = from_flat_dict(DualEncoderConfig, manifest.config)
        text_format = from_flat_dict(TextFormatConfig, manifest.config)
        lower_case = bool(manifest.config["lower-case"])
    except KeyError as error:
        raise CheckpointError(f"{folder}/manifest.json: the setting {error} is missing.") from error
    return DualEncoderDescription(folder, manifest, config, text_format, folder / VOCAB_NAME, lower_case)


def load_dual_encoder(
    path: str | Path, topology: ProcessTopology, dtype: torch.dtype = torch.float32
) -> LoadedDualEncoder:
    """Build a saved dual encoder at this topology, in evaluation mode."""
    description = describe_dual_encoder(path)
    model = DualEncoder(description.config, topology, dtype)
    load_weights(description.folder, description.manifest, model, topology)
    return LoadedDualEncoder(model.eval(), description)


def checkpoint_config(config: DualEncoderConfig, text_format: TextFormatConfig, lower_case: bool) -> dict[str, Any]:
    """What a checkpoint's manifest keeps of a dual encoder; dropout and recompute do not change what it computes, but
    are the defaults when it is trained further."""
    return {**to_flat_dict(config), **to_flat_dict(text_format), "lower-case": lower_case}
