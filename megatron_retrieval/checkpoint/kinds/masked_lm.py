"""Masked language models in checkpoints: shape and vocabulary travel with the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_retrieval.checkpoint.kinds.description import (
    LOWER_CASE_KEY,
    CheckpointDescription,
    open_checkpoint,
    saved_settings,
)
from megatron_retrieval.checkpoint.store.reader import load_weights
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.topology import ProcessTopology

KIND = "masked-lm"


@dataclass(frozen=True)
class MaskedLMDescription(CheckpointDescription):
    """All of a saved masked language model but its weights."""

    config: BertConfig


@dataclass(frozen=True)
class LoadedMaskedLM:
    """A masked language model ready to use, and what it says of itself."""

    model: MaskedLanguageModel
    description: MaskedLMDescription


def describe_masked_lm(path: str | Path) -> MaskedLMDescription:
    """Read a checkpoint's description without its weights.

    Raises:
        CheckpointError: no checkpoint here, or one of something else.
    """
    found = open_checkpoint(path, (KIND,))
    return MaskedLMDescription(found.folder, found.manifest, saved_settings(BertConfig, found))


def load_masked_lm(path: str | Path, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> LoadedMaskedLM:
    """Build a saved masked language model at this topology, in evaluation mode."""
    description = describe_masked_lm(path)
    model = MaskedLanguageModel(description.config, topology, dtype)
    load_weights(description.folder, description.manifest, model, topology)
    return LoadedMaskedLM(model.eval(), description)


def masked_lm_checkpoint_config(config: BertConfig, lower_case: bool) -> dict[str, Any]:
    """What a checkpoint's manifest keeps of a masked language model."""
    return {**to_flat_dict(config), LOWER_CASE_KEY: lower_case}
