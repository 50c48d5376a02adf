"""Dual encoders in checkpoints: shape, text layout and vocabulary travel with the weights."""

from __future__ import annotations

import dataclasses
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
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.parallel.topology import ProcessTopology

KIND = "dual-encoder"


@dataclass(frozen=True)
class DualEncoderDescription(CheckpointDescription):
    """All of a saved dual encoder but its weights."""

    config: DualEncoderConfig
    text_format: TextFormatConfig


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
    found = open_checkpoint(path, (KIND,))
    config, text_format = saved_settings(DualEncoderConfig, found), saved_settings(TextFormatConfig, found)
    return DualEncoderDescription(found.folder, found.manifest, config, text_format)


def load_dual_encoder(
    path: str | Path, topology: ProcessTopology, dtype: torch.dtype = torch.float32
) -> LoadedDualEncoder:
    """Build a saved dual encoder at this topology, in evaluation mode."""
    description = describe_dual_encoder(path)
    model = DualEncoder(description.config, topology, dtype)
    load_weights(description.folder, description.manifest, model, topology)
    return LoadedDualEncoder(model.eval(), description)


def load_encoder_for(
    evidence: EvidenceStore, checkpoint: Path, topology: ProcessTopology, dtype: torch.dtype
) -> LoadedDualEncoder:
    """A checkpoint's encoder in evaluation mode, to encode passages of `evidence`.

    Raises:
        MismatchError: the evidence was tokenized with another vocabulary than the checkpoint's.
    """
    encoder = load_dual_encoder(checkpoint, topology, dtype)
    evidence.require_vocabulary(encoder.description.vocabulary(), f"the checkpoint {checkpoint}")
    return encoder


def checkpoint_config(config: DualEncoderConfig, text_format: TextFormatConfig, lower_case: bool) -> dict[str, Any]:
    """What a checkpoint's manifest keeps of a dual encoder; dropout and recompute do not change what it computes, but
    are the defaults when it is trained further."""
    return {**to_flat_dict(config), **to_flat_dict(text_format), LOWER_CASE_KEY: lower_case}


def text_format_within(text_format: TextFormatConfig, bert: BertConfig) -> TextFormatConfig:
    """The layout with sequences no longer than the encoder's positions."""
    return dataclasses.replace(
        text_format,
        query_seq_length=min(text_format.query_seq_length, bert.max_position_embeddings),
        retriever_seq_length=min(text_format.retriever_seq_length, bert.max_position_embeddings),
    )
