"""Token sequences as padded batches, and groups of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: widths of token batches are multiples of this: the CPU's matrix library keeps kernels, and memory, for every shape
#: that it meets, and tensor cores prefer such shapes
WIDTH_STEP = 8


@dataclass(frozen=True)
class TokenBatch:
    """Token sequences padded on the right.

    Attributes:
        ids: [B, T] int64, padding value irrelevant.
        lengths: [B] int64, number of real tokens in each row (at least 1).
    """

    ids: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return self.ids.size(0)

    def rows(self, index: Tensor) -> TokenBatch:
        """The rows `index` [n], cut to the longest of them, in steps of `WIDTH_STEP` tokens."""
        lengths = self.lengths[index]
        longest = int(lengths.max()) if len(lengths) else 0
        return TokenBatch(self.ids[index, : -(-longest // WIDTH_STEP) * WIDTH_STEP], lengths)

    def to(self, device: torch.device) -> TokenBatch:
        return TokenBatch(self.ids.to(device, non_blocking=True), self.lengths.to(device, non_blocking=True))


def rows_of_groups(groups: Tensor, size: int) -> Tensor:
    """[n] numbers of groups of `size` rows each -> [n * size] numbers of their rows."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


def real_lengths(texts: TokenBatch, is_real: Tensor) -> Tensor:
    """[B, K] tokens of each of the B * K texts, 0 where `is_real` [B, K] says that it is a filler."""
    return texts.lengths.view_as(is_real).masked_fill(~is_real, 0)


def cut_labels(labels: Tensor) -> Tensor:
    """[n, L] labels, negative behind each row's own ones, cut to the longest row."""
    return labels[:, : int((labels >= 0).sum(1).max()) if len(labels) else 0]
