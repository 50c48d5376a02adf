"""Rough scores of some rows: the maximum of each group, and the scores of chosen groups."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from megatron_retrieval.index.rough import GROUP_ROWS, RoughQueries, RoughVectors, product
from megatron_retrieval.utils.logging import get_logger

log = get_logger("index")

#: rough scores (or maxima, where no scores are kept) that are computed at once: 16 MiB; more would leave a CPU's caches
SCORES_AT_ONCE = 1 << 22
#: bytes of rows that are gathered at once to compute scores of chosen groups
_GATHERED_BYTES = 1 << 27


class Tile(Protocol):
    """Rough scores of the rows from `first` on; those of hidden rows, and behind the last row, are `nothing`."""

    first: int
    num_scores: int
    maxima: Tensor
    """[groups, B]."""

    def of(self, group: Tensor, query: Tensor) -> Tensor:
        """[GROUP_ROWS, m] of the rows of a group [m] for a query [m] each."""


class KeptScores:
    """All scores, kept as long as the tile is."""

    def __init__(self, rough: RoughVectors, queries: RoughQueries, hidden: Tensor | None, rows: range) -> None:
        self.first = rows.start
        scores = product(rough.matrix[rows.start : rows.stop], queries.matrix)
        missing = -len(scores) % GROUP_ROWS
        if missing:
            scores = torch.cat([scores, scores.new_full((missing, scores.size(1)), nothing(scores))])
        if hidden is not None:
            query, row = _inside(hidden, rows)
            scores[row, query] = nothing(scores)
        self._scores, self.num_scores = scores, scores.numel()
        self.maxima = scores.view(-1, GROUP_ROWS, scores.size(1)).amax(1)

    def of(self, group: Tensor, query: Tensor) -> Tensor:
        width = self._scores.size(1)
        places = torch.arange(0, GROUP_ROWS * width, width, device=group.device)[:, None]
        places = places + (group * (GROUP_ROWS * width) + query)
        return self._scores.view(-1).index_select(0, places.view(-1)).view_as(places)


class MaximaOnly:
    """Maxima by a kernel that writes nothing else; scores of chosen groups are computed when they are asked for."""

    def __init__(self, rough: RoughVectors, queries: RoughQueries, hidden: Tensor | None, rows: range) -> None:
        kernel = maxima_kernel()
        assert kernel is not None
        self.first = rows.start
        self._rows, self._queries, self._hidden = rough.matrix[rows.start : rows.stop], queries.matrix, hidden
        self.maxima = kernel(self._rows, queries.matrix)
        self.num_scores = self.maxima.numel() * GROUP_ROWS
        if hidden is not None:
            query, row = _inside(hidden, rows)
            group = row // GROUP_ROWS
            self.maxima[group, query] = self.of(group, query).amax(0)

    def of(self, group: Tensor, query: Tensor) -> Tensor:
        at_once = max(1, _GATHERED_BYTES // (GROUP_ROWS * self._rows.size(1) * self._rows.element_size()))
        parts = zip(group.split(at_once), query.split(at_once), strict=True)
        return torch.cat([self._some(*part) for part in parts], 1)

    def _some(self, group: Tensor, query: Tensor) -> Tensor:
        row = group * GROUP_ROWS + torch.arange(GROUP_ROWS, device=group.device)[:, None]
        vectors = self._rows[row.clamp(max=len(self._rows) - 1)].float()
        scores = (vectors * self._queries.t()[query].float()).sum(2)
        is_none = row >= len(self._rows)
        if self._hidden is not None:
            is_none |= (self._hidden[query] == (row + self.first)[:, :, None]).any(2)
        return scores.masked_fill_(is_none, -torch.inf)


def make_tile(rough: RoughVectors, queries: RoughQueries, hidden: Tensor | None, rows: range) -> Tile:
    """Rough scores of the rows `rows` of a piece; `hidden` [B, E] counts from the piece's first row."""
    kind = MaximaOnly if rough.matrix.is_cuda and maxima_kernel() is not None else KeptScores
    return kind(rough, queries, hidden, rows)


def rows_of_a_tile(rough: RoughVectors, num_queries: int) -> int:
    """Rows of a piece whose scores are computed at once."""
    group_scores = 1 if rough.matrix.is_cuda and maxima_kernel() is not None else GROUP_ROWS
    return max(1, SCORES_AT_ONCE // (num_queries * group_scores)) * GROUP_ROWS


@cache
def maxima_kernel() -> Callable[[Tensor, Tensor], Tensor] | None:
    """[n, D] @ [D, B] -> [groups, B], where Triton is installed."""
    if importlib.util.find_spec("triton") is None:
        log.info("index: without Triton, rough scores pass through the GPU's memory")
        return None
    from megatron_retrieval.index.triton_maxima import group_maxima

    log.info("index: maxima of rough scores by a Triton kernel")
    return group_maxima


def nothing(scores: Tensor) -> float | int:
    """A score below that of every row, for rows that are none."""
    return torch.iinfo(scores.dtype).min if scores.dtype == torch.int32 else -torch.inf


def _inside(hidden: Tensor, rows: range) -> tuple[Tensor, Tensor]:
    """(query, row counted from the first of `rows`) of what is hidden there."""
    columns = hidden - rows.start
    query, place = ((columns >= 0) & (columns < len(rows))).nonzero(as_tuple=True)
    return query, columns[query, place]
