"""Sequences of different lengths in one flat array, in memory or memory-mapped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.tokenizers.vocabulary import Vocabulary

Array = NDArray[np.generic]
Rows = NDArray[np.int64]

_BLOCK_TEXTS = 1 << 14


@dataclass(frozen=True)
class Ragged:
    """Sequence i is `values[offsets[i] : offsets[i + 1]]`.

    Attributes:
        values: [total] the sequences, one after another.
        offsets: [n + 1] int64, beginning with 0.
    """

    values: Array
    offsets: Rows

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Array:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> Rows:
        return np.diff(self.offsets)

    def take(self, rows: Rows, max_length: int | Rows | None = None) -> Ragged:
        """The sequences `rows`, copied, each cut to its first `max_length` values."""
        return self.join(rows, rows + 1, max_length)

    def join(self, first: Rows, end: Rows, max_length: int | Rows | None = None) -> Ragged:
        """Sequences first[i] to end[i] - 1 one after another as sequence i, copied, cut to `max_length` values, or to
        max_length[i]."""
        starts = self.offsets[first]
        lengths = self.offsets[end] - starts
        if max_length is not None:
            lengths = np.minimum(lengths, max_length)
        offsets = to_offsets(lengths)
        return Ragged(self.values[np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])], offsets)

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int]], dtype: type[np.generic]) -> Ragged:
        offsets = to_offsets(np.fromiter(map(len, sequences), np.int64, len(sequences)))
        return cls(np.fromiter(chain.from_iterable(sequences), dtype, int(offsets[-1])), offsets)

    @classmethod
    def concatenate(cls, parts: Iterable[Ragged]) -> Ragged:
        parts = list(parts)
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate([part.values for part in parts]), to_offsets(lengths))


def to_offsets(lengths: Rows | NDArray[np.bool_]) -> Rows:
    """Where each of the sequences with these lengths begins, and where the last one ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def tokenize(tokenizer: Vocabulary, texts: Sequence[str]) -> Ragged:
    """The token ids of the texts, a block at a time, to bound the memory of Python lists."""
    dtype = token_dtype(tokenizer.vocab_size)
    blocks = [texts[start : start + _BLOCK_TEXTS] for start in range(0, len(texts), _BLOCK_TEXTS)]
    return Ragged.concatenate(
        [Ragged.from_sequences([], dtype), *(Ragged.from_sequences(tokenizer.encode(block), dtype) for block in blocks)]
    )


def token_dtype(vocab_size: int) -> type[np.generic]:
    """The smallest integer type for the ids of the vocabulary."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32
