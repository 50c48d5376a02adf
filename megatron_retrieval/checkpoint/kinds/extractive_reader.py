"""Extractive readers in checkpoints: shape, text layout and vocabulary travel with the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron_retrieval.checkpoint.kinds.description import (
    LOWER_CASE_KEY,
    CheckpointDescription,
    open_checkpoint,
    saved_passage_scores,
    saved_settings,
)
from megatron_retrieval.checkpoint.store.reader import load_weights
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology

KIND = "extractive-reader"


@dataclass(frozen=True)
class ExtractiveReaderDescription(CheckpointDescription):
    """All of a saved extractive reader, or of what one may start from, but its weights.

    Attributes:
        layout: None where it has not been trained as a reader.
        passage_scores: what it does with the scores of passages; nothing where it was trained without a retriever.
    """

    config: BertConfig
    layout: ExtractiveFormatConfig | None = None
    passage_scores: PassageScoreConfig = field(default_factory=PassageScoreConfig)


@dataclass(frozen=True)
class LoadedExtractiveReader:
    """An extractive reader ready to use, and what it says of itself."""

    model: ExtractiveReader
    description: ExtractiveReaderDescription


def describe_extractive_reader(path: str | Path) -> ExtractiveReaderDescription:
    """Read a checkpoint's description without its weights.

    Raises:
        CheckpointError: no checkpoint here, or one of something else.
    """
    found = open_checkpoint(path, (KIND,))
    config, layout = saved_settings(BertConfig, found), saved_settings(ExtractiveFormatConfig, found)
    scores = saved_passage_scores(found)
    if scores.passage_score_use == "bias":
        raise CheckpointError(f"{found.folder}/manifest.json: scores as a bias are for readers that write.")
    return ExtractiveReaderDescription(found.folder, found.manifest, config, layout, scores)


def load_extractive_reader(
    path: str | Path, topology: ProcessTopology, dtype: torch.dtype = torch.float32
) -> LoadedExtractiveReader:
    """Build a saved extractive reader at this topology, in evaluation mode."""
    description = describe_extractive_reader(path)
    model = ExtractiveReader(description.config, topology, dtype)
    load_weights(description.folder, description.manifest, model, topology)
    return LoadedExtractiveReader(model.eval(), description)


def extractive_reader_checkpoint_config(
    config: BertConfig,
    layout: ExtractiveFormatConfig,
    lower_case: bool,
    passage_scores: PassageScoreConfig | None = None,
) -> dict[str, Any]:
    """What a checkpoint's manifest keeps of an extractive reader.

    Args:
        passage_scores: None where it was trained without a retriever.
    """
    of_scores = {} if passage_scores is None else to_flat_dict(passage_scores)
    return {**to_flat_dict(config), **to_flat_dict(layout), **of_scores, LOWER_CASE_KEY: lower_case}
