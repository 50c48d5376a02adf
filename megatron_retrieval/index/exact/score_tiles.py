"""Approximate scores of a block of rows: the maximum of each group, and the scores of chosen groups."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from megatron_retrieval.index.exact.bounded_products import GROUP_ROWS, RoughQueries, RoughVectors, product, score_dtype
from megatron_retrieval.index.exact.hidden_rows import HiddenRows
from megatron_retrieval.utils.logging import get_logger

log = get_logger("index")

#: approximate scores (or maxima, where no scores are kept) of a tile: 128 MiB
SCORES_AT_ONCE = 1 << 25
#: scores whose maxima are taken while they are in a CPU's caches
_SCORES_IN_CACHE = 1 << 20
#: bytes of rows that are gathered at once to compute scores of chosen groups
_GATHERED_BYTES = 1 << 27


class Tile(Protocol):
    """Rough scores of the rows from `first` on; those of hidden rows, and behind the last row, are `nothing`."""

    first: int
    num_scores: int
    maxima: Tensor
    """[groups, B]."""

    def of(self, group: Tensor, query: Tensor) -> Tensor:
        """[m, GROUP_ROWS] of the rows of a group [m] for a query [m] each."""


class ScoreBuffer:
    """Memory for the scores of one tile at a time, reused by the next one: new pages cost a CPU more than products.

    Whoever searches owns one; two searches at the same time need two.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def tensor(self, use: str, num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[num_rows, width] of any contents; on a CPU the same memory for the same `use` and type."""
        if device.type != "cpu":
            return torch.empty(num_rows, width, dtype=dtype, device=device)
        if (use, dtype) not in self._kept or len(self._kept[use, dtype]) < num_rows * width:
            self._kept[use, dtype] = torch.empty(num_rows * width, dtype=dtype)
        return self._kept[use, dtype][: num_rows * width].view(num_rows, width)


class KeptScores:
    """All scores and maxima, in the buffer: valid until the next tile is made with it."""

    def __init__(
        self, rough: RoughVectors, queries: RoughQueries, hidden: HiddenRows | None, rows: range, buffer: ScoreBuffer
    ) -> None:
        self.first = rows.start
        matrix, width = rough.matrix[rows.start : rows.stop], len(queries.unit)
        num_groups = -(-len(rows) // GROUP_ROWS)
        scores = buffer.tensor("scores", num_groups * GROUP_ROWS, width, score_dtype(matrix), matrix.device)
        scores[len(rows) :] = nothing(scores)
        self._scores, self.num_scores = scores.view(num_groups, GROUP_ROWS, width), scores.numel()
        self.maxima = buffer.tensor("maxima", num_groups, width, scores.dtype, scores.device)
        at_once = max(1, _SCORES_IN_CACHE // (width * GROUP_ROWS)) if matrix.device.type == "cpu" else num_groups
        for group in range(0, num_groups, at_once):
            some = slice(group * GROUP_ROWS, min((group + at_once) * GROUP_ROWS, len(rows)))
            product(matrix[some], queries.matrix, out=scores[some])
            _maxima(self._scores[group : group + at_once], self.maxima[group : group + at_once])
        if hidden is not None:
            query, row = hidden.inside(rows)
            scores[row, query] = nothing(scores)
            group_of_row = row // GROUP_ROWS
            self.maxima[group_of_row, query] = self.of(group_of_row, query).amax(1)

    def of(self, group: Tensor, query: Tensor) -> Tensor:
        return self._scores[group, :, query]


class MaximaOnly:
    """Maxima by a kernel that writes nothing else; scores of chosen groups are computed on demand."""

    def __init__(
        self, rough: RoughVectors, queries: RoughQueries, hidden: HiddenRows | None, rows: range, buffer: ScoreBuffer
    ) -> None:
        kernel = maxima_kernel()
        assert kernel is not None
        self.first = rows.start
        self._rows, self._queries, self._hidden = rough.matrix[rows.start : rows.stop], queries.matrix, hidden
        self.maxima = kernel(self._rows, queries.matrix)
        self.num_scores = self.maxima.numel() * GROUP_ROWS
        if hidden is not None:
            query, row = hidden.inside(rows)
            group = row // GROUP_ROWS
            self.maxima[group, query] = self.of(group, query).amax(1)

    def of(self, group: Tensor, query: Tensor) -> Tensor:
        at_once = max(1, _GATHERED_BYTES // (GROUP_ROWS * self._rows.size(1) * self._rows.element_size()))
        parts = zip(group.split(at_once), query.split(at_once), strict=True)
        return torch.cat([self._some(*part) for part in parts])

    def _some(self, group: Tensor, query: Tensor) -> Tensor:
        row = group[:, None] * GROUP_ROWS + torch.arange(GROUP_ROWS, device=group.device)
        vectors = self._rows[row.clamp(max=len(self._rows) - 1)].float()
        scores = (vectors * self._queries.t()[query, None].float()).sum(2)
        is_none = row >= len(self._rows)
        if self._hidden is not None:
            is_none |= self._hidden.holds(query, row + self.first)
        return scores.masked_fill_(is_none, -torch.inf)


def make_tile(
    rough: RoughVectors, queries: RoughQueries, hidden: HiddenRows | None, rows: range, buffer: ScoreBuffer
) -> Tile:
    """Rough scores of the rows `rows` of a piece; `hidden` counts from the piece's first row. The tile may be
    valid only until the next one is made with this buffer."""
    kind = MaximaOnly if rough.matrix.is_cuda and maxima_kernel() is not None else KeptScores
    return kind(rough, queries, hidden, rows, buffer)


def rows_of_a_tile(rough: RoughVectors, num_queries: int) -> int:
    """Rows of a piece in one tile."""
    group_scores = 1 if rough.matrix.is_cuda and maxima_kernel() is not None else GROUP_ROWS
    return max(1, SCORES_AT_ONCE // (num_queries * group_scores)) * GROUP_ROWS


@cache
def maxima_kernel() -> Callable[[Tensor, Tensor], Tensor] | None:
    """[n, D] @ [D, B] -> [groups, B], where Triton is installed."""
    if importlib.util.find_spec("triton") is None:
        log.info("index: without Triton, rough scores pass through the GPU's memory")
        return None
    from megatron_retrieval.index.exact.triton_maxima import group_maxima

    log.info("index: maxima of rough scores by a Triton kernel")
    return group_maxima


def _maxima(scores: Tensor, out: Tensor) -> None:
    """[n, GROUP_ROWS, B] -> [n, B], by halves where torch's reduction is slow: of few columns."""
    if scores.size(2) >= 32 or scores.is_cuda:
        torch.amax(scores, 1, out=out)
        return
    while (half := scores.size(1) // 2) > 1:
        scores = torch.maximum(scores[:, :half], scores[:, half:])
    torch.maximum(scores[:, 0], scores[:, 1], out=out)


def nothing(scores: Tensor) -> float | int:
    """A score below every real one, for hidden and missing rows."""
    return torch.iinfo(scores.dtype).min if scores.dtype == torch.int32 else -torch.inf
