"""Search over ranks gives each rank the bits that one process would have given it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_retrieval.index.api import TensorVectors
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.index.exact.sharded import ShardedIndex, rank_rows
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.retriever import search_overlap
from megatron_retrieval.testing.spawn import run_on_ranks

NUM_ROWS, K = 1003, 9


def _evidence() -> torch.Tensor:
    """Three copies of most rows, so that ties cross the borders between ranks."""
    distinct = torch.randn(340, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    return distinct.repeat(3, 1)[:NUM_ROWS]


def _questions() -> tuple[torch.Tensor, torch.Tensor]:
    """Questions, the last of which finds row 0 first, and four of the rows that each finds, to be excluded."""
    queries = torch.randn(13, 48, generator=torch.Generator().manual_seed(1))
    queries[-1] = _evidence()[0].float()
    excluded = FlatIndex(_evidence()).search(queries, K).rows[:, 1:K:2]
    excluded[::3, 1] = -1
    return queries, excluded


def _search_a_share(topology: ProcessTopology, share_sizes: list[int]) -> list[torch.Tensor]:
    index = ShardedIndex(_evidence(), topology)
    queries, excluded = (values.split(share_sizes)[topology.rank] for values in _questions())
    if topology.world_size > 1:
        with pytest.raises(ValueError, match="all ranks must ask for the same k, got"):
            index.search(queries, K + topology.rank % 2)
    assert (index.num_rows, index.dimension) == (NUM_ROWS, 48)
    free = index.search(queries, K)
    # ranks may exclude different numbers of rows, one of them none at all
    width = 4 - topology.rank
    restricted = index.search(queries, K, excluded[:, :width] if topology.rank < 3 else None)
    # as many ranges as the number of the rank, so that the first excludes none
    ranges = _ranges(queries, topology.rank)
    beside = index.search(queries, K, exclude_ranges=ranges if topology.rank else None)
    return [free.scores, free.rows, restricted.scores, restricted.rows, beside.rows]


def _ranges(queries: torch.Tensor, number: int) -> torch.Tensor:
    """[B, number, 2] from each of the rows found first up to the next but nine."""
    found = FlatIndex(_evidence()).search(queries, K).rows[:, :number]
    return torch.stack([found, found + 10], 2)


def test_same_bits_at_any_number_of_ranks() -> None:
    queries, excluded = _questions()
    single = FlatIndex(_evidence())
    free = single.search(queries, K)
    for share_sizes in ([13], [9, 4], [5, 0, 7, 1]):
        ranks = run_on_ranks(_search_a_share, len(share_sizes), share_sizes)
        scores, rows, restricted_scores, restricted_rows, beside = map(torch.cat, zip(*ranks, strict=True))
        assert torch.equal(rows, free.rows)
        assert torch.equal(scores, free.scores)
        masked = excluded.clone()
        for rank, share in enumerate(masked.split(share_sizes)):
            share[:, (4 - rank if rank < 3 else 0) :] = -1
        restricted = single.search(queries, K, masked)
        assert not torch.equal(restricted.rows, free.rows)
        assert restricted.rows[-1, 0] == 0, "which another rank excludes nothing but padding"
        assert torch.equal(restricted_rows, restricted.rows)
        assert torch.equal(restricted_scores, restricted.scores)
        shares = [_ranges(share, rank) for rank, share in enumerate(queries.split(share_sizes))]
        alone = [
            single.search(share, K, exclude_ranges=ranges)
            for share, ranges in zip(queries.split(share_sizes), shares, strict=True)
        ]
        assert torch.equal(beside, torch.cat([found.rows for found in alone]))


def _vectors_of(topology: ProcessTopology, share_sizes: list[int]) -> list[torch.Tensor]:
    """Of rows that are asked for in any order and twice, from an index that shares rows out, and from one to which the
    ranks bring them, the last rank the first ones."""
    rows = torch.randint(NUM_ROWS, (13,), generator=torch.Generator().manual_seed(2)).repeat(2)
    own = rows.split([2 * size for size in share_sizes])[topology.rank]
    start, stop = rank_rows(NUM_ROWS, topology.world_size - 1 - topology.rank, topology.world_size)
    brought = TensorVectors(_evidence()[start:stop])
    indexes = [
        ShardedIndex(_evidence(), topology), ShardedIndex.of_parts(brought, start, NUM_ROWS, topology)
    ]  # fmt: skip
    return [*(index.vectors_of(own) for index in indexes), _evidence()[own].float()]


def test_vectors_travel_to_the_rank_that_asks() -> None:
    for share_sizes in ([13], [9, 4], [5, 0, 7, 1]):
        for shared, brought, wanted in run_on_ranks(_vectors_of, len(share_sizes), share_sizes):
            assert torch.equal(shared, wanted)
            assert torch.equal(brought, wanted)


def _search_tiny_evidence(topology: ProcessTopology) -> list[Any]:
    """What is found, and how much of it in another index: by the queries of two ranks, of which one has none."""
    index, query = ShardedIndex(torch.eye(2), topology), torch.tensor([[1.0, 2.0]])
    other = ShardedIndex(torch.tensor([[0.0, 3.0], [1.0, 0.0], [0.0, 2.0]]), topology)
    queries = {1: query, 3: query.flip(1)}.get(topology.rank)
    return [index.search(query, 3).rows.tolist(), search_overlap(index, other, queries, 2, topology)]


def test_more_ranks_than_rows() -> None:
    # one question finds rows 1, 0 and, in the other index, 0, 2; the other one 0, 1 in both
    assert run_on_ranks(_search_tiny_evidence, 4) == [[[[1, 0, -1]], {"index_overlap@2": 0.75}]] * 4
