"""The two steps that make exact search reproducible to the bit: the score of a pair, and the order of candidates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.types.search import SearchResult

#: products in float64 held at once while pairs are scored: 2 MiB, which a core's cache nearly holds
_PRODUCTS_AT_ONCE = 1 << 18


def pair_scores(queries: Tensor, vectors: Tensor, query_index: Tensor, vector_index: Tensor) -> Tensor:
    """Inner products of chosen pairs, the same bits on every device, thread count and batch.

    A product of two float32 numbers is exact in float64; the products of a pair are added by halves in a fixed order
    with elementwise additions only, and the sum is rounded once.

    Args:
        queries: [B, D] float32.
        vectors: [n, D] float32.
        query_index, vector_index: [m] int64, the pairs.

    Returns:
        [m] float32; zero is always +0.
    """
    step = max(1, _PRODUCTS_AT_ONCE // queries.size(1))
    parts = []
    for query_rows, vector_rows in zip(query_index.split(step), vector_index.split(step), strict=True):
        products = queries.index_select(0, query_rows).double()
        products *= vectors.index_select(0, vector_rows)
        parts.append(sum_by_halves(products).float())
    return torch.cat(parts) + 0.0


def sum_by_halves(values: Tensor) -> Tensor:
    """[m, D] -> [m], in place: the upper half is added to the lower until one column is left."""
    width = values.size(1)
    while width > 1:
        half = (width + 1) // 2
        values[:, : width - half] += values[:, half:width]
        width = half
    return values[:, 0]


def in_query_order(query_index: Tensor, num_queries: int) -> Tensor:
    """The order that brings the pairs of a query together, in the order in which they stand."""
    if query_index.device.type != "cpu" or num_queries > 1 << 16:
        return query_index.argsort(stable=True)
    # NumPy sorts numbers of 16 bits by their digits: a tenth of the time
    return torch.from_numpy(query_index.numpy().astype(np.uint16).argsort(kind="stable"))


def best_of_pairs(query_index: Tensor, scores: Tensor, rows: Tensor, num_queries: int, k: int) -> SearchResult:
    """The k best (score, row) of each query among pairs in any order; score descending, then row ascending.

    Args:
        query_index: [m] int64, the query of each pair.
        scores: [m] float32.
        rows: [m] int64, distinct within a query.

    Returns:
        [num_queries, k]; row -1 and score -inf where a query has fewer than k pairs.
    """
    order = rows.argsort(stable=True)
    order = order[scores[order].argsort(descending=True, stable=True)]
    order = order[in_query_order(query_index[order], num_queries)]
    query_index = query_index[order]
    counts = query_index.bincount(minlength=num_queries)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(order), device=order.device) - first[query_index]
    kept = place < k
    query_index, place, order = query_index[kept], place[kept], order[kept]
    result = empty_result(num_queries, k, scores.device)
    result.scores[query_index, place] = scores[order]
    result.rows[query_index, place] = rows[order]
    return result


def empty_result(num_queries: int, k: int, device: torch.device) -> SearchResult:
    """No row found yet."""
    return SearchResult(
        scores=torch.full((num_queries, k), -torch.inf, device=device),
        rows=torch.full((num_queries, k), -1, dtype=torch.int64, device=device),
    )


def found_pairs(result: SearchResult) -> tuple[Tensor, Tensor, Tensor]:
    """(query, score, row) of everything found in `result`."""
    query_index, column = (result.rows >= 0).nonzero(as_tuple=True)
    return query_index, result.scores[query_index, column], result.rows[query_index, column]
