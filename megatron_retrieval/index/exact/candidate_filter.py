"""Filters rows by bounds of their scores; the survivors are scored again exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.index.exact.bounded_pairs import BoundedPairs, joined, no_pairs
from megatron_retrieval.index.exact.bounded_products import GROUP_ROWS, RoughQueries, RoughVectors, rounding
from megatron_retrieval.index.exact.hidden_rows import HiddenRows
from megatron_retrieval.index.exact.pair_scores import best_of_pairs, found_pairs, in_query_order, pair_scores
from megatron_retrieval.index.exact.score_tiles import ScoreBuffer, Tile, make_tile, nothing, rows_of_a_tile
from megatron_retrieval.types.search import SearchResult

#: pairs scored between two updates of the best rows; bounds memory when thousands of rows tie
_PAIRS_AT_ONCE = 1 << 20
#: vectors read from their source at once, for tighter bounds
_ROWS_SEEN_AT_ONCE = 1 << 14
#: bounds are too wide where a larger share of the scores reaches the floor, unless there are only a few
_USEFUL_SHARE = 1 / 16
_ALWAYS_USEFUL = 4096


class TooRoughError(Exception):
    """The bounds of the rough scores are too wide to drop most rows."""


@dataclass(frozen=True)
class Piece:
    """Rows that are searched together.

    Attributes:
        rough: the rows as the approximate product takes them.
        take: rows of the piece [m] -> their stored vectors [m, D].
        first_row: evidence row of the first one.
    """

    rough: RoughVectors
    take: Callable[[Tensor], Tensor]
    first_row: int


class CandidateFilter:
    """Searches one piece for some queries.

    The k-th greatest lower bound so far is the floor: a row whose upper bound is lower is not among the k best. Whole
    groups of rows are dropped by the bound of their maximum.

    Args:
        queries: [B, D] float32.
        best: the best rows of earlier pieces.
        hidden: rows of the evidence that are no candidates, or None.
        buffer: of this search alone.
        patient: continue even if the bounds are too wide to drop most rows.
    """

    def __init__(
        self,
        piece: Piece,
        queries: Tensor,
        best: SearchResult,
        hidden: HiddenRows | None,
        buffer: ScoreBuffer,
        patient: bool = True,
    ) -> None:
        self._piece, self._queries, self._best = piece, queries, best
        self._rough: RoughQueries = piece.rough.queries(queries)
        self._k, self._patient, self._buffer = best.rows.size(1), patient, buffer
        self._hidden = None if hidden is None else hidden.counted_from(piece.first_row)
        self._floor = best.scores[:, -1].clamp(min=torch.finfo(torch.float32).min)
        self._base = float(piece.rough.longest.max()) * self._rough.residuals + self._rough.slack
        self._fresh: list[BoundedPairs] = []
        self._pool = no_pairs(queries.device)

    def search(self) -> SearchResult:
        """The best of earlier pieces and this one.

        Raises:
            TooRoughError: where `patient` is False and the bounds are too wide to be of use.
        """
        rough, num_rows = self._piece.rough, len(self._piece.rough)
        step = rows_of_a_tile(rough, len(self._queries))
        for start in range(0, num_rows, step):
            rows = range(start, min(start + step, num_rows))
            self._filter(make_tile(rough, self._rough, self._hidden, rows, self._buffer))
        self._tighten()
        self._settle()
        return self._best

    def _residuals(self, tile: Tile) -> Tensor:
        """[groups] bound of the residual of each group's rough rows."""
        residuals, first = self._piece.rough.residuals, tile.first // GROUP_ROWS
        return residuals.expand(len(tile.maxima)) if len(residuals) == 1 else residuals[first:][: len(tile.maxima)]

    def _filter(self, tile: Tile) -> None:
        """Add the rows that reach the floor to the pool; the maxima of the groups give a first floor."""
        if bool((self._floor == torch.finfo(torch.float32).min).any()):
            self._floor = torch.maximum(self._floor, self._floor_of_maxima(tile))
        rough = self._rough
        high = _rounded_up(tile.maxima * rough.unit, rounding(tile.maxima))
        high.addr_(self._residuals(tile), rough.lengths)
        group, query = (high >= self._limit()).nonzero(as_tuple=True)
        groups_at_once = max(1, _PAIRS_AT_ONCE // GROUP_ROWS)
        for some_groups, some_queries in zip(group.split(groups_at_once), query.split(groups_at_once), strict=True):
            self._filter_groups(tile, some_groups, some_queries)

    def _limit(self) -> Tensor:
        """[B] lower limit for the sum of a rough score and the residual of its row."""
        return self._floor - self._rough.offset - self._base

    def _floor_of_maxima(self, tile: Tile) -> Tensor:
        """[B] a lower bound of the k-th best score: that of the best rows of the k best groups."""
        num_queries = len(self._queries)
        if len(tile.maxima) < self._k:
            return torch.full_like(self._floor, -torch.inf)
        scores, group = (part.flatten() for part in tile.maxima.t().topk(self._k))
        query = torch.arange(num_queries, device=group.device).repeat_interleave(self._k)
        low, high = self._bounds(scores, self._residuals(tile)[group], query)
        if self._is_coarse:
            row = tile.first + group * GROUP_ROWS + tile.of(group, query).argmax(1)
            closer = self._with_tighter_bounds(BoundedPairs(query, row, low, high))
            low = torch.where(low.isinf(), low, closer.low)
        return low.view(num_queries, self._k).amin(1)

    @property
    def _is_coarse(self) -> bool:
        """Whether bounds are so wide that a float32 product pays before the canonical score."""
        return self._piece.rough.is_coded

    def _bounds(self, scores: Tensor, residuals: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of the canonical scores behind rough ones of the given queries."""
        rough = self._rough
        is_nothing = scores == nothing(scores)
        values = (scores * rough.unit[queries]).masked_fill_(is_nothing, 0)
        errors = residuals * rough.lengths[queries] + self._base[queries] + values.abs() * rounding(scores)
        values = (values + rough.offset[queries]).masked_fill_(is_nothing, -torch.inf)
        return values - errors, values + errors

    def _filter_groups(self, tile: Tile, group: Tensor, query: Tensor) -> None:
        """Add the rows of one group for each query to the pool, if they reach the floor."""
        rough = self._rough
        scores = tile.of(group, query)
        high = _rounded_up(scores * rough.unit[query, None], rounding(scores))
        residuals = self._residuals(tile)[group]
        limit = self._limit()[query] - residuals * rough.lengths[query]
        pair, place = ((high >= limit[:, None]) & (scores != nothing(scores))).nonzero(as_tuple=True)
        if not self._patient and len(place) > max(_USEFUL_SHARE * tile.num_scores, _ALWAYS_USEFUL):
            raise TooRoughError
        scores, group, query = scores[pair, place], group[pair], query[pair]
        low, high = self._bounds(scores, residuals[pair], query)
        self._fresh.append(BoundedPairs(query, tile.first + group * GROUP_ROWS + place, low, high))
        if sum(map(len, self._fresh)) > max(4 * len(self._queries) * self._k, len(self._pool)):
            self._tighten()
        if len(self._pool) > _PAIRS_AT_ONCE:
            self._settle()

    def _tighten(self) -> None:
        """Raise the floor to the k-th greatest lower bound in the pool, and drop what lies below."""
        if not any(map(len, self._fresh)):
            self._fresh = []
            return
        fresh, self._fresh = joined(self._fresh), []
        if self._is_coarse:
            fresh = self._with_tighter_bounds(fresh)
        pairs = joined([self._pool, fresh.kept(fresh.high >= self._floor[fresh.query])])
        order = pairs.low.argsort(descending=True)
        order = order[in_query_order(pairs.query[order], len(self._queries))]
        counts = pairs.query.bincount(minlength=len(self._queries))
        enough = (counts >= self._k).nonzero()[:, 0]
        kth = (counts.cumsum(0) - counts + self._k - 1)[enough]
        self._floor[enough] = torch.maximum(self._floor[enough], pairs.low[order[kth]])
        self._pool = pairs.kept(pairs.high >= self._floor[pairs.query])

    def _with_tighter_bounds(self, pairs: BoundedPairs) -> BoundedPairs:
        """With bounds from products in float32, query by query."""
        order = in_query_order(pairs.query, len(self._queries))
        query, row = pairs.query[order], pairs.row[order]
        scores = []
        for some_queries, some_rows in zip(query.split(_ROWS_SEEN_AT_ONCE), row.split(_ROWS_SEEN_AT_ONCE), strict=True):
            counts = some_queries.bincount(minlength=len(self._queries)).tolist()
            parts = zip(self._queries, self._piece.take(some_rows).split(counts), strict=True)
            scores += [vectors.float() @ vector for vector, vectors in parts if len(vectors)]
        errors = self._rough.slack[query]
        values = torch.cat(scores).masked_fill_(errors.isinf(), 0)
        return BoundedPairs(query, row, values - errors, values + errors)

    def _settle(self) -> None:
        """Score the pool in the canonical way and keep the best."""
        if not len(self._pool):
            return
        pairs, best = self._pool, self._best
        for query, row in zip(pairs.query.split(_PAIRS_AT_ONCE), pairs.row.split(_PAIRS_AT_ONCE), strict=True):
            rows, vector = row.unique(return_inverse=True)
            scores = pair_scores(self._queries, self._piece.take(rows).float(), query, vector)
            known_query, known_scores, known_rows = found_pairs(best)
            best = best_of_pairs(
                torch.cat([known_query, query]),
                torch.cat([known_scores, scores]),
                torch.cat([known_rows, row + self._piece.first_row]),
                len(self._queries),
                self._k,
            )
        self._best, self._pool = best, no_pairs(row.device)
        self._floor = torch.maximum(self._floor, best.scores[:, -1])


def _rounded_up(values: Tensor, relative_error: float) -> Tensor:
    return values + values.abs() * relative_error if relative_error else values
