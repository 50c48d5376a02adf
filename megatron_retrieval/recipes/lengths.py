"""Sequences must fit the encoder's positions, which is checked before any of them is read."""

from __future__ import annotations

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.bert import BertConfig


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
