"""Batches of masked or corrupted text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.types.tokens import TokenBatch, cut_labels, to_device


@dataclass(frozen=True)
class MaskedBatch:
    """One rank's share of a global batch of masked sequences; all ranks hold the same number of rows.

    Attributes:
        tokens: n sequences, masked.
        labels: [n, T] int64, the original id where a token is to be predicted, -1 elsewhere and in fillers.
    """

    tokens: TokenBatch
    labels: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor) -> MaskedBatch:
        """The rows `index` [n], cut like their tokens; all of it on the CPU."""
        tokens = self.tokens.rows(index)
        return MaskedBatch(tokens, self.labels[index, : tokens.ids.size(1)])

    def to(self, device: torch.device) -> MaskedBatch:
        return MaskedBatch(self.tokens.to(device), to_device(self.labels, device))


@dataclass(frozen=True)
class CorruptedBatch:
    """One rank's share of a global batch of texts with gaps; all ranks hold the same number of rows.

    Attributes:
        tokens: n texts, a sentinel in the place of each gap, with their end tokens.
        labels: [n, L] int64, each text's sentinels and behind each what was in its place, with an end token; -1 behind
            that and in fillers.
    """

    tokens: TokenBatch
    labels: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor) -> CorruptedBatch:
        """The rows `index` [n], labels cut to the longest; all of it on the CPU."""
        return CorruptedBatch(self.tokens.rows(index), cut_labels(self.labels[index]))

    def to(self, device: torch.device) -> CorruptedBatch:
        return CorruptedBatch(self.tokens.to(device), to_device(self.labels, device))
