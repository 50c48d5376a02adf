"""Exact search by inner product, block by block, on any device that torch knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_retrieval.errors import MegatronRetrievalError, MismatchError
from megatron_retrieval.index.api import TensorVectors, VectorSource
from megatron_retrieval.index.candidates import best_of_pairs, empty_result, found_pairs, pair_scores
from megatron_retrieval.types import SearchResult

#: largest matrix of approximate scores held at once (64 MiB)
_SCORES_AT_ONCE = 1 << 24
#: pairs scored between two updates of the best so far; bounds memory when thousands of rows tie
_PAIRS_AT_ONCE = 1 << 20
_QUERIES_AT_ONCE = 512


class FlatIndex:
    """Compares every query with every row; obeys the contract of `SearchIndex`.

    A matrix product finds candidates: rows whose approximate score lies within its rounding error of the k-th best.
    Their scores are then computed again in one canonical way, so that no bit of the answer depends on how the
    matrix product was cut or ordered.

    Args:
        vectors: an `EmbeddingStore`, another source, or a tensor [N, D].
        first_row: row of the evidence that the first vector belongs to.
        device: where to search. On a GPU the vectors are copied there once, in their stored type; on the CPU they
            stay where they are (memory-mapped, for a store).
    """

    def __init__(
        self, vectors: VectorSource | Tensor, first_row: int = 0, device: torch.device | str | None = None
    ) -> None:
        source = TensorVectors(vectors.detach()) if isinstance(vectors, Tensor) else vectors
        if device is None:
            device = vectors.device if isinstance(vectors, Tensor) else "cpu"
        self._device = torch.device(device)
        if self._device.type != "cpu":
            source = TensorVectors(_copy_to_device(source, self._device))
        self._source = source
        self._first_row = first_row
        # first row of a block -> length of its longest vector, known after the first search
        self._longest: dict[int, float] = {}

    @property
    def num_rows(self) -> int:
        return len(self._source)

    @property
    def dimension(self) -> int:
        return self._source.dimension

    @torch.no_grad()
    def search(self, queries: Tensor, k: int, exclude_rows: Tensor | None = None) -> SearchResult:
        """See `SearchIndex.search`.

        Raises:
            MismatchError: the queries have another dimension.
            MegatronRetrievalError: a query or a stored vector holds NaN or infinity, or scores exceed float32.
        """
        asked_on = queries.device
        queries = checked_queries(queries, k, self.dimension).to(self._device)
        if len(queries) == 0:
            return empty_result(0, k, asked_on)
        excluded = None if exclude_rows is None else exclude_rows.to(self._device)
        parts = [empty_result(len(part), k, self._device) for part in queries.split(_QUERIES_AT_ONCE)]
        block_rows = max(1, _SCORES_AT_ONCE // _QUERIES_AT_ONCE)
        with _full_precision(self._device):
            for start in range(0, self.num_rows, block_rows):
                block = self._source.vectors(start, min(start + block_rows, self.num_rows)).float()
                longest = self._longest_vector(block, start)
                for number, part in enumerate(queries.split(_QUERIES_AT_ONCE)):
                    first = number * _QUERIES_AT_ONCE
                    hidden = None if excluded is None else excluded[first : first + len(part)]
                    search = _BlockSearch(part, block, start + self._first_row, longest)
                    parts[number] = search.improve(parts[number], hidden)
        return SearchResult(
            torch.cat([part.scores for part in parts]).to(asked_on),
            torch.cat([part.rows for part in parts]).to(asked_on),
        )

    def _longest_vector(self, block: Tensor, start: int) -> float:
        """Euclidean length of the block's longest vector; refuses vectors that are no numbers."""
        if start not in self._longest:
            lengths = torch.linalg.vector_norm(block, dim=1, dtype=torch.float64)
            if not torch.isfinite(lengths).all():
                row = int((~torch.isfinite(lengths)).nonzero()[0]) + start + self._first_row
                raise MegatronRetrievalError(
                    f"The vector of evidence row {row} holds NaN or infinity; embed the evidence again."
                )
            self._longest[start] = float(lengths.max())
        return self._longest[start]


class _BlockSearch:
    """Some queries against one block of rows."""

    def __init__(self, queries: Tensor, block: Tensor, first_row: int, longest: float) -> None:
        self._queries, self._block, self._first_row = queries, block, first_row
        dimension = queries.size(1)
        lengths = torch.linalg.vector_norm(queries, dim=1, dtype=torch.float64)
        largest = float(lengths.max()) * longest
        if largest > torch.finfo(torch.float32).max / 2:
            raise MegatronRetrievalError(
                f"Scores up to {largest:.1e} do not fit into float32; normalise or scale the embeddings."
            )
        # Bound of |matrix product - canonical score|, whatever the order of the additions, with fused multiply-add or
        # without, plus the rounding of the canonical score and products below the smallest normal number.
        self._error = (dimension + 8) * (2.0**-24 * 1.01 * lengths * longest + 2.0**-125)

    def improve(self, best: SearchResult, hidden: Tensor | None) -> SearchResult:
        """`best` with the block's rows taken into account; rows of earlier blocks are lower and win ties."""
        k = best.rows.size(1)
        approximate = self._queries @ self._block.t()
        if hidden is not None:
            self._hide(approximate, hidden)
        query_index, vector_index = self._candidates(approximate, best.scores[:, -1], k)
        del approximate
        for queries_of, vectors_of in zip(
            query_index.split(_PAIRS_AT_ONCE), vector_index.split(_PAIRS_AT_ONCE), strict=True
        ):
            if len(queries_of) == 0:
                continue
            scores = pair_scores(self._queries, self._block, queries_of, vectors_of)
            known_query, known_scores, known_rows = found_pairs(best)
            best = best_of_pairs(
                torch.cat([known_query, queries_of]),
                torch.cat([known_scores, scores]),
                torch.cat([known_rows, vectors_of + self._first_row]),
                len(self._queries),
                k,
            )
        return best

    def _hide(self, approximate: Tensor, hidden: Tensor) -> None:
        columns = hidden - self._first_row  # negative for rows of earlier blocks and for -1, which hides nothing
        query_index, place = ((columns >= 0) & (columns < len(self._block))).nonzero(as_tuple=True)
        approximate[query_index, columns[query_index, place]] = -torch.inf

    def _candidates(self, approximate: Tensor, worst_kept: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(query, column) of all rows that may belong to the k best, given the k-th best score so far."""
        lowest = torch.finfo(torch.float32).min  # below every real score, above those of hidden rows
        limit = (worst_kept.double() - self._error).clamp(min=lowest)
        above = approximate >= _round_down(limit)[:, None]
        if int(above.sum()) > 4 * k * len(approximate):
            kth = approximate.topk(min(k, approximate.size(1))).values[:, -1].double()
            limit = torch.maximum(limit, kth - 2 * self._error)
            above = approximate >= _round_down(limit)[:, None]
        query_index, column = above.nonzero(as_tuple=True)
        return query_index, column


def _round_down(limit: Tensor) -> Tensor:
    """float64 -> the next lower float32, never below the lowest finite one."""
    lowest = torch.finfo(torch.float32).min
    below = torch.nextafter(limit.float(), torch.tensor(-torch.inf, device=limit.device))
    return below.clamp(min=lowest)


def checked_queries(queries: Tensor, k: int, dimension: int) -> Tensor:
    """Queries as [B, D] float32, or an error that says what is wrong with them."""
    if k < 1:
        raise ValueError(f"k = {k}: at least one row must be asked for")
    if queries.dim() != 2 or queries.size(1) != dimension:
        raise MismatchError(
            f"Queries of shape {list(queries.shape)} were given to an index of dimension {dimension}; were the "
            "evidence and the questions embedded by different encoders?"
        )
    queries = queries.detach().float()
    finite = torch.isfinite(queries).all(dim=1)
    if not finite.all():
        raise MegatronRetrievalError(
            f"The vector of query {int((~finite).nonzero()[0])} holds NaN or infinity; has training diverged?"
        )
    return queries


def _copy_to_device(source: VectorSource, device: torch.device, step: int = 1 << 18) -> Tensor:
    if isinstance(source, TensorVectors):
        return source.values.to(device)
    if len(source) == 0:
        return torch.empty(0, source.dimension, device=device)
    target = torch.empty(len(source), source.dimension, dtype=source.vectors(0, 1).dtype, device=device)
    for start in range(0, len(source), step):
        stop = min(start + step, len(source))
        target[start:stop] = source.vectors(start, stop).to(device)
    return target


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in real float32, whatever autocast or TF32 settings the caller trains with."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
