"""How long sequences are: they must fit a model's positions, which is checked before any of them is read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.errors import ConfigError


@dataclass(kw_only=True, frozen=True)
class ReaderLengthsConfig(Checked):
    """How long the sequences of any reader are."""

    question_seq_length: PositiveInt = 64
    """Longest question, in tokens; longer ones are cut."""
    reader_seq_length: int = 256
    """Longest sequence, in tokens with question, title and what frames them; the text is cut."""


Lengths = TypeVar("Lengths", bound=ReaderLengthsConfig)


def require_positions(max_positions: int | None, **lengths: int) -> None:
    """Refuse sequences that a model has no positions for.

    Args:
        max_positions: of the model; None where its positions are relative and any length will do.
        lengths: the longest sequence in tokens, by the name of the setting.

    Raises:
        ConfigError: one is too long.
    """
    for name, length in lengths.items():
        if max_positions is not None and length > max_positions:
            raise ConfigError(
                f"--{name.replace('_', '-')} {length} exceeds the encoder's {max_positions} positions; "
                "lower it, or raise --max-position-embeddings where training starts from random weights."
            )


def within_positions(lengths: Lengths, max_positions: int | None) -> Lengths:
    """The layout with texts no longer than the model's positions, and then half of them for the question at most."""
    if max_positions is None or lengths.reader_seq_length <= max_positions:
        return lengths
    question_length = min(lengths.question_seq_length, max_positions // 2)
    return dataclasses.replace(lengths, reader_seq_length=max_positions, question_seq_length=question_length)
