"""Sequences must fit a BERT's positions, which is checked before any of them is read."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from megatron_retrieval.checkpoint.kinds.architectures import Shape
from megatron_retrieval.data.layouts.extractive import ReaderLengthsConfig
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.generation import GenerationConfig

Layout = TypeVar("Layout", bound=ReaderLengthsConfig)


def require_positions(bert: BertConfig, **lengths: int) -> None:
    """Refuse sequences that the encoder has no positions for.

    Args:
        lengths: the longest sequence in tokens, by the name of the setting.

    Raises:
        ConfigError: one is too long.
    """
    for name, length in lengths.items():
        if length > bert.max_position_embeddings:
            raise ConfigError(
                f"--{name.replace('_', '-')} {length} exceeds the encoder's {bert.max_position_embeddings} positions; "
                "lower it, or raise --max-position-embeddings where training starts from random weights."
            )


def require_reading_positions(shape: Shape, layout: FusionFormatConfig, generation: GenerationConfig) -> None:
    """Refuse texts and answers that a fusion reader has no positions for; a T5's are relative and never end.

    Raises:
        ConfigError: one is too long.
    """
    if isinstance(shape, BertConfig):
        lengths = {"reader_seq_length": layout.reader_seq_length, "max_answer_length": generation.max_answer_length}
        require_positions(shape, **lengths)


def within_positions(layout: Layout, shape: Shape | BertConfig) -> Layout:
    """The layout with texts no longer than a BERT's positions, and then half of them for the question at most."""
    if not isinstance(shape, BertConfig) or layout.reader_seq_length <= shape.max_position_embeddings:
        return layout
    length = shape.max_position_embeddings
    question_length = min(layout.question_seq_length, length // 2)
    return dataclasses.replace(layout, reader_seq_length=length, question_seq_length=question_length)
