"""A GPU kernel that multiplies rows with queries and writes the maximum of each group of rows only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_retrieval.index.exact.bounded_products import GROUP_ROWS

_TILE_ROWS, _TILE_WIDTH, _MOST_QUERIES, _FEWEST_QUERIES = 128, 64, 64, 16


@triton.jit
def _write_maxima(  # type: ignore[no-untyped-def]
    rows,
    queries,
    maxima,
    num_rows,
    num_queries,
    dimension,
    tile_rows: tl.constexpr,
    tile_queries: tl.constexpr,
    tile_width: tl.constexpr,
    group_rows: tl.constexpr,
):
    """One program: tile_rows rows [n, D] times tile_queries queries [B, D], summed in float32; maxima [groups, B]."""
    row = tl.program_id(0).to(tl.int64) * tile_rows + tl.arange(0, tile_rows)
    query = tl.program_id(1) * tile_queries + tl.arange(0, tile_queries)
    scores = tl.zeros((tile_rows, tile_queries), dtype=tl.float32)
    for start in range(0, dimension, tile_width):
        column = start + tl.arange(0, tile_width)
        some_rows = tl.load(
            rows + row[:, None] * dimension + column[None, :],
            mask=(row[:, None] < num_rows) & (column[None, :] < dimension),
            other=0.0,
        )
        some_queries = tl.load(
            queries + query[None, :] * dimension + column[:, None],
            mask=(query[None, :] < num_queries) & (column[:, None] < dimension),
            other=0.0,
        )
        scores = tl.dot(some_rows, some_queries, scores, input_precision="ieee")
    scores = tl.where(row[:, None] < num_rows, scores, float("-inf"))
    best = tl.max(tl.reshape(scores, (tile_rows // group_rows, group_rows, tile_queries)), axis=1)
    group = tl.program_id(0).to(tl.int64) * (tile_rows // group_rows) + tl.arange(0, tile_rows // group_rows)
    kept = (group[:, None] * group_rows < num_rows) & (query[None, :] < num_queries)
    tl.store(maxima + group[:, None] * num_queries + query[None, :], best, mask=kept)


def group_maxima(rows: Tensor, queries: Tensor) -> Tensor:
    """[n, D] @ [D, B] -> [n / GROUP_ROWS, B] float32, the greatest score of each group of rows.

    Args:
        rows: float32, bfloat16 or float16, contiguous.
        queries: of the same type.
    """
    by_query = queries.t().contiguous()
    num_rows, num_queries = len(rows), len(by_query)
    maxima = torch.empty(-(-num_rows // GROUP_ROWS), num_queries, device=rows.device)
    tile_queries = min(_MOST_QUERIES, max(_FEWEST_QUERIES, triton.next_power_of_2(num_queries)))
    grid = (triton.cdiv(num_rows, _TILE_ROWS), triton.cdiv(num_queries, tile_queries))
    _write_maxima[grid](
        rows.contiguous(),
        by_query,
        maxima,
        num_rows,
        num_queries,
        rows.size(1),
        tile_rows=_TILE_ROWS,
        tile_queries=tile_queries,
        tile_width=_TILE_WIDTH,
        group_rows=GROUP_ROWS,
    )
    return maxima
