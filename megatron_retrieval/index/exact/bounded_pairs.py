"""Pairs of query and row with bounds of their scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BoundedPairs:
    """(query, row of the piece) with bounds of the score; all [m]."""

    query: Tensor
    row: Tensor
    low: Tensor
    high: Tensor

    def __len__(self) -> int:
        return len(self.query)

    def kept(self, mask: Tensor) -> BoundedPairs:
        return BoundedPairs(self.query[mask], self.row[mask], self.low[mask], self.high[mask])


def joined(parts: list[BoundedPairs]) -> BoundedPairs:
    columns = zip(*((part.query, part.row, part.low, part.high) for part in parts), strict=True)
    return BoundedPairs(*(torch.cat(column) for column in columns))


def no_pairs(device: torch.device) -> BoundedPairs:
    none, bound = torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, device=device)
    return BoundedPairs(none, none, bound, bound)
