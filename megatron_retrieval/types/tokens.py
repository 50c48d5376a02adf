"""Token sequences as padded batches, and groups of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

#: widths of token batches are multiples of this: the CPU's matrix library keeps kernels, and memory, for every shape
#: that it meets, and tensor cores prefer such shapes
WIDTH_STEP = 8


@dataclass(frozen=True)
class TokenBatch:
    """Token sequences padded on the right.

    Attributes:
        ids: [B, T] int64 on any device, padding value irrelevant.
        lengths: [B] int64, number of real tokens in each row (at least 1); always on the CPU: how a batch is cut
            depends on it, and a GPU would make the host wait for it.
    """

    ids: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return self.ids.size(0)

    def rows(self, index: Tensor) -> TokenBatch:
        """The rows `index` [n], on the CPU, cut to the longest of them, in steps of `WIDTH_STEP` tokens."""
        lengths = self.lengths[index]
        longest = int(lengths.max()) if len(lengths) else 0
        index = to_device(index, self.ids.device)
        return TokenBatch(self.ids[index, : -(-longest // WIDTH_STEP) * WIDTH_STEP], lengths)

    def with_rows(self, places: Tensor, others: TokenBatch) -> TokenBatch:
        """With others [n] in the places [n] of some rows; all of it on the CPU."""
        width = max(self.ids.size(1), others.ids.size(1))
        ids, new = (torch.nn.functional.pad(texts.ids, (0, width - texts.ids.size(1))) for texts in (self, others))
        return TokenBatch(ids.index_copy(0, places, new), self.lengths.index_copy(0, places, others.lengths))

    def in_rows(self, places: Tensor, ids: Tensor, lengths: Tensor) -> TokenBatch:
        """The greater batch of `ids` and `lengths`, whose rows `places` [n] these are, with what goes with them."""
        return TokenBatch(ids, lengths)

    def is_real(self) -> Tensor:
        """[B, T] bool on the device of the ids, False at padding."""
        columns = torch.arange(self.ids.size(1), device=self.ids.device)
        return columns < to_device(self.lengths, self.ids.device)[:, None]

    def to(self, device: torch.device) -> Self:
        return replace(self, ids=to_device(self.ids, device))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU without making the host wait, through pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def by_length(lengths: Tensor, batch_size: int, *, longest_first: bool = False) -> list[Tensor]:
    """[n] lengths -> the n positions in batches of at most `batch_size`, sequences of like length together.

    Padding then costs little. Equal lengths stay in their order; without sequences there is one batch of none.
    """
    return list(lengths.argsort(descending=longest_first, stable=True).split(batch_size))


def in_given_order(values: Tensor, batches: Sequence[Tensor]) -> Tensor:
    """The inverse of `by_length`: rows [n, ...] that came batch by batch -> row i is that of position i."""
    return values[to_device(torch.cat(list(batches)).argsort(), values.device)]


def rows_of_groups(groups: Tensor, size: int) -> Tensor:
    """[n] numbers of groups of `size` rows each -> [n * size] numbers of their rows."""
    return (groups[:, None] * size + torch.arange(size)).flatten()


def real_lengths(texts: TokenBatch, is_real: Tensor) -> Tensor:
    """[B, K] tokens of each of the B * K texts, 0 where `is_real` [B, K] says that it is a filler."""
    return texts.lengths.view_as(is_real).masked_fill(~is_real, 0)


def cut_labels(labels: Tensor) -> Tensor:
    """[n, L] labels, negative behind each row's own ones, cut to the longest row."""
    return labels[:, : int((labels >= 0).sum(1).max()) if len(labels) else 0]
