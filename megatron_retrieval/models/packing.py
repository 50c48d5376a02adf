"""Texts without padding: their real tokens in one row, of which only attention sees a padded form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.types.tokens import TokenBatch, to_device


@dataclass(frozen=True)
class Packing:
    """Where the N real tokens of B texts stand in a [T, B] grid; they are in the order of the texts.

    Attributes:
        places: [N] int64 on the model's device, column * B + row of each.
        num_rows: B.
        num_columns: T.
    """

    places: Tensor
    num_rows: int
    num_columns: int

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> Packing:
        """That of texts of `lengths` [B], on the CPU."""
        width = int(lengths.max()) if len(lengths) else 0
        rows, columns = (torch.arange(width) < lengths[:, None]).nonzero(as_tuple=True)
        return cls(to_device(columns * len(lengths) + rows, device), len(lengths), width)

    @property
    def columns(self) -> Tensor:
        """[N] int64, the place of every token in its text, from 0."""
        return self.places // self.num_rows

    @property
    def rows(self) -> Tensor:
        """[N] int64, the text of every token."""
        return self.places % self.num_rows

    def pad(self, states: Tensor) -> Tensor:
        """[N, 1, ...] -> [T, B, ...], zero at padding."""
        grid = states.new_zeros(self.num_columns * self.num_rows, *states.shape[2:])
        return grid.index_copy(0, self.places, states[:, 0]).view(self.num_columns, self.num_rows, *states.shape[2:])

    def unpad(self, states: Tensor) -> Tensor:
        """[T, B, ...] -> [N, 1, ...]."""
        return states.flatten(0, 1).index_select(0, self.places)[:, None]


def pack(batch: TokenBatch, device: torch.device) -> tuple[Tensor, Packing]:
    """[N] ids of the real tokens of B texts, text by text, on the device, and where they stand."""
    ids = to_device(batch.ids, device)
    packing = Packing.of(batch.lengths, device)
    return ids[packing.rows, packing.columns], packing


def packed_places(lengths: Tensor, places: Tensor, width: int) -> Tensor:
    """[M] places of tokens among the packed ones, given row * width + column of each in a batch of texts; all of it on
    one device."""
    rows = places // width
    starts = lengths.cumsum(0) - lengths
    return starts[rows] + places % width
