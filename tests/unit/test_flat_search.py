"""Exact search equals brute force to the bit, whatever the blocks, ties and near-ties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_retrieval.errors import MegatronRetrievalError, MismatchError
from megatron_retrieval.index.api import SearchIndex
from megatron_retrieval.index.exact import candidate_filter as sieve
from megatron_retrieval.index.exact import flat
from megatron_retrieval.index.exact import score_tiles as tiles
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.types.search import SearchResult


def _brute_force(
    vectors: torch.Tensor, queries: torch.Tensor, k: int, excluded: list[set[int]] | None = None
) -> SearchResult:
    """Exactly rounded inner products, sorted by (score, row)."""
    scores = torch.full((len(queries), k), -torch.inf)
    rows = torch.full((len(queries), k), -1)
    for number, query in enumerate(queries.double()):
        exact = [(-_float32(math.fsum((query * vector).tolist())), row) for row, vector in enumerate(vectors.double())]
        hidden = excluded[number] if excluded else set()
        for place, (score, row) in enumerate(sorted(pair for pair in exact if pair[1] not in hidden)[:k]):
            scores[number, place], rows[number, place] = -score, row
    return SearchResult(scores, rows)


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).float())


def _assert_same(result: SearchResult, expected: SearchResult) -> None:
    assert torch.equal(result.rows, expected.rows)
    assert torch.equal(result.scores, expected.scores)


def _with_near_ties(seed: int, num_rows: int, dimension: int, scale: float, copies: float) -> torch.Tensor:
    """Rows that repeat one another, some with a change in the last bit of one coordinate."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, dimension, generator=random) * scale
    originals = torch.randint(0, max(1, int(num_rows * (1 - copies))), (num_rows,), generator=random)
    rows = rows[originals]
    touched = torch.rand(num_rows, generator=random) < 0.3
    rows[touched, 0] = torch.nextafter(rows[touched, 0], torch.tensor(torch.inf))
    return rows


@settings(max_examples=100, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    num_rows=st.integers(1, 60),
    dimension=st.sampled_from([1, 3, 16, 65]),
    num_queries=st.integers(1, 5),
    k=st.integers(1, 12),
    scale=st.sampled_from([1.0, 1e-6, 1e-30, 1e12]),
    copies=st.sampled_from([0.0, 0.5, 0.95]),
    block=st.sampled_from([1, 7, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    in_codes=st.booleans(),
)
def test_equals_brute_force(
    seed: int,
    num_rows: int,
    dimension: int,
    num_queries: int,
    k: int,
    scale: float,
    copies: float,
    block: int,
    dtype: torch.dtype,
    in_codes: bool,
) -> None:
    if dtype == torch.float16:
        scale = min(scale, 1e3)
    vectors = _with_near_ties(seed, num_rows, dimension, scale, copies).to(dtype)
    queries = _with_near_ties(seed + 1, num_queries, dimension, scale, 0.0)
    random = torch.Generator().manual_seed(seed)
    excluded = torch.randint(-1, num_rows, (num_queries, 3), generator=random)
    # every second range or so ends before it begins
    ranges = torch.randint(0, num_rows + 1, (num_queries, 2, 2), generator=random)
    hidden = [
        set(rows).union(*(range(*pair) for pair in pairs))
        for rows, pairs in zip(excluded.tolist(), ranges.tolist(), strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "_ROWS_FOR_CODES", 1 if in_codes else 1 << 20)
        patch.setitem(flat.QUERIES_AT_ONCE, "cpu", 2)
        patch.setattr(flat, "_BLOCK_BYTES", 4 * dimension * block)
        patch.setattr(tiles, "SCORES_AT_ONCE", 2 * block)
        patch.setattr(tiles, "_SCORES_IN_CACHE", 16)
        patch.setattr(sieve, "_PAIRS_AT_ONCE", 5)
        _assert_same(FlatIndex(vectors).search(queries, k), _brute_force(vectors, queries, k))
        found = FlatIndex(vectors).search(queries, k, excluded, ranges)
    _assert_same(found, _brute_force(vectors, queries, k, hidden))


def _permutations(num_rows: int) -> torch.Tensor:
    """One vector with its coordinates in different orders: against a constant query all scores are equal, but a
    float32 sum comes out differently for each."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(1024, generator=random)
    return torch.stack([values[torch.randperm(1024, generator=random)] for _ in range(num_rows)])


def test_ties_that_the_matrix_product_does_not_see() -> None:
    vectors, query = _permutations(2000), torch.ones(1, 1024)  # some processors sum 500 to ten values alone
    assert len((query @ vectors.t()).unique()) > 10
    result = FlatIndex(vectors).search(query, 5)
    assert result.rows.tolist() == [[0, 1, 2, 3, 4]]
    assert len(result.scores.unique()) == 1


def test_better_rows_of_later_blocks_that_the_matrix_product_ranks_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "_BLOCK_BYTES", 4 * 1024 * 50)
    vectors, query = _permutations(400), torch.ones(1, 1024)
    vectors[300:, 7] += 1e-5
    _assert_same(FlatIndex(vectors).search(query, 100), _brute_force(vectors, query, 100))
    assert FlatIndex(vectors).search(query, 100).rows.min() == 300


def test_threads_and_offsets_do_not_change_a_bit() -> None:
    vectors = _with_near_ties(3, 3000, 96, 1.0, 0.6)
    queries = torch.randn(33, 96, generator=torch.Generator().manual_seed(4))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = FlatIndex(vectors).search(queries, 20)
        torch.set_num_threads(2)
        two = FlatIndex(vectors, first_row=1000).search(queries, 20)
    finally:
        torch.set_num_threads(threads)
    _assert_same(SearchResult(two.scores, two.rows - 1000), one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_searched_as_stored(dtype: torch.dtype) -> None:
    vectors = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    queries = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    _assert_same(FlatIndex(vectors).search(queries, 7), _brute_force(vectors.float(), queries, 7))


def test_caller_settings_for_matrix_products_are_ignored_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def product(rows: torch.Tensor, queries: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return out.copy_(rows @ queries)

    monkeypatch.setattr(tiles, "product", product)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            FlatIndex(torch.ones(3, 2)).search(torch.ones(1, 2), 1)
            assert seen == [("highest", False)]
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_fewer_rows_than_asked_for_leave_minus_one() -> None:
    index = FlatIndex(torch.eye(2))
    assert isinstance(index, SearchIndex)
    result = index.search(torch.tensor([[0.0, 2.0]]), 4, torch.tensor([[0]]))
    assert result.rows.tolist() == [[1, -1, -1, -1]]
    assert result.scores.tolist() == [[2.0, -math.inf, -math.inf, -math.inf]]
    assert index.search(torch.empty(0, 2), 3).rows.shape == (0, 3)
    assert FlatIndex(torch.empty(0, 2)).search(torch.ones(1, 2), 1).rows.tolist() == [[-1]]


def test_vectors_that_are_no_numbers_are_refused() -> None:
    vectors = torch.ones(5, 3)
    vectors[3, 1] = torch.nan
    with pytest.raises(MegatronRetrievalError, match=r"evidence row 13 .*NaN"):
        FlatIndex(vectors, first_row=10).search(torch.ones(1, 3), 1)
    with pytest.raises(MegatronRetrievalError, match="query 1"):
        FlatIndex(torch.ones(5, 3)).search(torch.tensor([[1.0, 1, 1], [1, torch.inf, 1]]), 1)
    with pytest.raises(MegatronRetrievalError, match="do not fit into float32"):
        FlatIndex(torch.full((5, 3), 1e30)).search(torch.full((1, 3), 1e30), 1)
    with pytest.raises(MismatchError, match="dimension 3"):
        FlatIndex(torch.ones(5, 3)).search(torch.ones(1, 4), 1)
