"""Rows that are no candidates for a query: single ones, and ranges of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HiddenRows:
    """What a search leaves out, query by query.

    Attributes:
        rows: [B, E] int64; numbers that are no row stand for none.
        ranges: [B, R, 2] int64, first row and end; an empty range stands for none.
    """

    rows: Tensor
    ranges: Tensor

    @classmethod
    def of(
        cls, num_queries: int, exclude_rows: Tensor | None, exclude_ranges: Tensor | None, device: torch.device
    ) -> HiddenRows | None:
        """What `SearchIndex.search` is given, on a device; None where it hides nothing."""
        if exclude_rows is None and exclude_ranges is None:
            return None
        rows = torch.empty(num_queries, 0, dtype=torch.int64) if exclude_rows is None else exclude_rows
        ranges = torch.empty(num_queries, 0, 2, dtype=torch.int64) if exclude_ranges is None else exclude_ranges
        return cls(rows.to(device), ranges.to(device))

    def of_queries(self, some: slice) -> HiddenRows:
        """Those of some of the queries."""
        return HiddenRows(self.rows[some], self.ranges[some])

    def counted_from(self, first_row: int) -> HiddenRows:
        """The same rows, by numbers that begin with 0 at `first_row`."""
        return HiddenRows(self.rows - first_row, self.ranges - first_row)

    def most_of_a_query(self) -> int:
        """The most rows that are hidden from one query, as far as their numbers tell."""
        lengths = (self.ranges[..., 1] - self.ranges[..., 0]).clamp(min=0).sum(1)
        return self.rows.size(1) + (int(lengths.max()) if len(lengths) else 0)

    def inside(self, rows: range) -> tuple[Tensor, Tensor]:
        """(query, row counted from the first of `rows`) of all that is hidden there; a pair may come twice."""
        columns = self.rows - rows.start
        query, place = ((columns >= 0) & (columns < len(rows))).nonzero(as_tuple=True)
        ends = (self.ranges - rows.start).clamp(0, len(rows))
        lengths = (ends[..., 1] - ends[..., 0]).clamp(min=0).flatten()
        number = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        step = torch.arange(len(number), device=lengths.device) - (lengths.cumsum(0) - lengths)[number]
        of_ranges = ends[..., 0].flatten()[number] + step
        per_query = max(1, self.ranges.size(1))
        return torch.cat([query, number // per_query]), torch.cat([columns[query, place], of_ranges])

    def holds(self, query: Tensor, row: Tensor) -> Tensor:
        """[m, n] whether the rows [m, n] are hidden from the query [m] of their line."""
        of_rows = (self.rows[query, None] == row[:, :, None]).any(2)
        starts, ends = (self.ranges[query, None, :, side] for side in (0, 1))
        return of_rows | ((row[:, :, None] >= starts) & (row[:, :, None] < ends)).any(2)
