"""Fusion readers in checkpoints: the weights of a T5, with its vocabulary and the layout of what it reads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_retrieval.checkpoint import t5
from megatron_retrieval.checkpoint.description import open_model, saved_settings
from megatron_retrieval.checkpoint.reader import load_weights
from megatron_retrieval.config import to_flat_dict
from megatron_retrieval.data.fusion_layout import FusionFormatConfig
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel import ProcessTopology

KIND = "fusion-reader"
#: what a fusion reader may start from
STARTING_KINDS = (t5.KIND, KIND)


@dataclass(frozen=True)
class FusionReaderDescription(t5.T5Description):
    """All of a saved reader but its weights.

    Attributes:
        layout: None where it is a T5 that has not been trained as a reader.
    """

    layout: FusionFormatConfig | None


def describe_fusion_reader(path: str | Path, kinds: Collection[str] = (KIND,)) -> FusionReaderDescription:
    """Read a checkpoint's description without its weights.

    Raises:
        CheckpointError: no checkpoint here, or one of none of these kinds.
    """
    found = open_model(path, kinds, t5.SENTENCEPIECE_NAME)
    layout = saved_settings(FusionFormatConfig, found) if found.kind == KIND else None
    return FusionReaderDescription(found.folder, found.manifest, saved_settings(T5Config, found), layout)


def load_reader_weights(
    description: FusionReaderDescription, topology: ProcessTopology, dtype: torch.dtype = torch.float32
) -> T5:
    """Build a saved reader's model at this topology, in evaluation mode."""
    model = T5(description.config, topology, dtype)
    load_weights(description.folder, description.manifest, model, topology)
    return model.eval()


def fusion_reader_checkpoint_config(config: T5Config, layout: FusionFormatConfig) -> dict[str, Any]:
    """What a checkpoint's manifest keeps of a fusion reader."""
    return {**t5.t5_checkpoint_config(config), **to_flat_dict(layout)}
