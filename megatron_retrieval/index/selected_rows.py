"""Some rows of a source of vectors, as a source of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_retrieval.index.api import VectorSource


class SelectedRows:
    """The rows of some ranges, one after another; a `VectorSource`. Numbers keep their order: what ties by row does so
    in the source.

    Args:
        ranges: [R, 2] int64, first row and end of each, ascending and apart.
    """

    def __init__(self, source: VectorSource, ranges: Tensor) -> None:
        self._source, self._firsts = source, ranges[:, 0].contiguous()
        lengths = ranges[:, 1] - ranges[:, 0]
        #: [R + 1] number of the first selected row of each range
        self._offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])

    @property
    def dimension(self) -> int:
        return self._source.dimension

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def rows(self, numbers: Tensor) -> Tensor:
        """[...] numbers of selected rows -> those of the source; -1 stays."""
        places = self._place_of(numbers.clamp(min=0))
        return torch.where(numbers < 0, numbers, self._firsts[places] + numbers - self._offsets[places])

    def numbers(self, rows: Tensor) -> Tensor:
        """[...] rows of the source -> how many selected ones are before each; so a range becomes one of numbers."""
        places = torch.searchsorted(self._firsts, rows.contiguous(), right=True) - 1
        inside = torch.minimum(
            self._offsets[places.clamp(min=0)] + rows - self._firsts[places.clamp(min=0)], self._offsets[places + 1]
        )
        return torch.where(places < 0, 0, inside)

    def vectors(self, start: int, stop: int) -> Tensor:
        return self.vectors_of(torch.arange(start, stop))

    def read(self, start: int, stop: int) -> Tensor:
        """One read of the source, of the rows between the first and the last of these as well."""
        if start == stop:
            return self._source.read(0, 0)
        rows = self.rows(torch.arange(start, stop))
        first, last = int(rows[0]), int(rows[-1])
        block = self._source.read(first, last + 1)
        return block if len(block) == len(rows) else block.index_select(0, rows - first)

    def vectors_of(self, rows: Tensor) -> Tensor:
        return self._source.vectors_of(self.rows(rows))

    def _place_of(self, numbers: Tensor) -> Tensor:
        """The range that each number is in."""
        return torch.searchsorted(self._offsets, numbers.contiguous(), right=True) - 1
