"""What the fast products leave out is within their bounds, and never costs a row."""

from __future__ import annotations

import pytest
import torch

from megatron_retrieval.index.exact import bounded_products as rough
from megatron_retrieval.index.exact import flat
from megatron_retrieval.index.exact import int8_codes as codes
from megatron_retrieval.index.exact import score_tiles as tiles
from megatron_retrieval.index.exact.candidate_filter import CandidateFilter, Piece
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.index.exact.pair_scores import best_of_pairs, empty_result, pair_scores
from megatron_retrieval.types.search import SearchResult

NUM_ROWS, DIMENSION, K = 3000, 96, 20

#: kinds of 8-bit codes that torch multiplies without an error here, whether fast or not
CODES = [dtype for dtype in rough.LARGEST_CODE if codes.is_exact(dtype, DIMENSION)]


def _gaussian(random: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(NUM_ROWS, DIMENSION, generator=random), dim=1)


def _crowded(random: torch.Generator) -> torch.Tensor:
    """Rows so near to one another that their scores differ in the last bits of bfloat16, if at all."""
    return torch.randn(DIMENSION, generator=random) + 1e-3 * torch.randn(NUM_ROWS, DIMENSION, generator=random)


def _cancelling(random: torch.Generator) -> torch.Tensor:
    """Scores near zero, as differences of large products."""
    half = 100 * torch.randn(NUM_ROWS, DIMENSION // 2, generator=random)
    return torch.cat([half, -half], 1) + 0.1 * torch.randn(NUM_ROWS, DIMENSION, generator=random)


def _uneven(random: torch.Generator) -> torch.Tensor:
    """Few huge coordinates, many tiny ones (some below the smallest normal number of float16), rows of zeros."""
    rows = torch.randn(NUM_ROWS, DIMENSION, generator=random)
    rows[:, 10] *= 5e2
    rows[:, 20:60] *= 1e-6
    rows[::7] *= 10
    rows[::11] = 0
    return rows


def _queries(random: torch.Generator) -> torch.Tensor:
    queries = torch.randn(7, DIMENSION, generator=random)
    queries[1] = 1.0  # makes differences of the cancelling rows
    queries[2] = 0.0
    queries[3] *= 1e-9
    queries[4, 5:] = 0.0
    return queries


def _all_pairs(vectors: torch.Tensor, queries: torch.Tensor) -> SearchResult:
    query = torch.arange(len(queries)).repeat_interleave(len(vectors))
    row = torch.arange(len(vectors)).repeat(len(queries))
    return best_of_pairs(query, pair_scores(queries, vectors.float(), query, row), row, len(queries), K)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [_gaussian, _crowded, _cancelling, _uneven])
@pytest.mark.parametrize("kind", [None, *CODES])
def test_rows_are_those_of_all_pairs(
    monkeypatch: pytest.MonkeyPatch, make: object, dtype: torch.dtype, kind: torch.dtype | None
) -> None:
    random = torch.Generator().manual_seed(0)
    assert callable(make)
    vectors, queries = make(random).to(dtype), _queries(random)
    monkeypatch.setattr(flat, "_ROWS_FOR_CODES", 1)
    monkeypatch.setattr(codes, "fastest_codes", lambda dimension: kind)
    monkeypatch.setattr(tiles, "SCORES_AT_ONCE", len(queries) * 500)
    monkeypatch.setattr(tiles, "_SCORES_IN_CACHE", len(queries) * 200)
    index = FlatIndex(vectors)
    found, expected = index.search(queries, K), _all_pairs(vectors, queries)
    assert (index._codes.matrix.dtype if index._codes else None) == kind
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("make", [_gaussian, _crowded, _cancelling, _uneven])
@pytest.mark.parametrize("form", ["bfloat16", "float16 in bfloat16", "float32", *CODES])
def test_products_are_within_their_bounds(make: object, form: str | torch.dtype) -> None:
    random = torch.Generator().manual_seed(1)
    assert callable(make)
    stored = {"float16 in bfloat16": torch.float16, "float32": torch.float32}.get(str(form), torch.bfloat16)
    vectors, queries = make(random).to(stored), _queries(random)
    if isinstance(form, torch.dtype):
        rows = codes.encode(lambda start, stop: vectors[start:stop], NUM_ROWS, form)
        assert rows is not None
    else:
        dtype = torch.float32 if form == "float32" else torch.bfloat16
        rows = rough.of_block(vectors, float(vectors.double().norm(dim=1).max()), dtype)
    taken = rows.queries(queries)
    # sums in the worst order; what a test can provoke is far from it
    largest = queries.double().norm(dim=1) * vectors.double().norm(dim=1).max()
    assert (taken.slack >= DIMENSION * 2.0**-24 * largest).all()
    scores = rough.product(rows.matrix, taken.matrix)
    longest, residuals = (
        bound.repeat_interleave(rough.GROUP_ROWS)[:NUM_ROWS, None] if len(bound) > 1 else bound
        for bound in (rows.longest, rows.residuals)
    )
    piece = Piece(rows, lambda some: vectors[some], 0)
    nothing = empty_result(len(queries), K, queries.device)
    query = torch.arange(len(queries)).repeat(NUM_ROWS)
    low, high = CandidateFilter(piece, queries, nothing, None, tiles.ScoreBuffer())._bounds(
        scores.flatten(), residuals.expand(NUM_ROWS, len(queries)).flatten(), query
    )
    exact = (vectors.double() @ queries.double().t()).flatten()
    assert ((low.double() <= exact) & (exact <= high.double())).all()
    values = scores.double() * taken.unit
    bounds = longest * taken.residuals + residuals * taken.lengths + taken.slack + values.abs() * rough.rounding(scores)
    errors = (values + taken.offset - vectors.double() @ queries.double().t()).abs()
    assert (errors <= bounds).all()
    assert (errors > 0).any()


@pytest.mark.parametrize("kind", CODES)
def test_codes_that_tell_too_few_rows_apart_are_given_up(monkeypatch: pytest.MonkeyPatch, kind: torch.dtype) -> None:
    """One huge coordinate that is no constant leaves 8 bits nothing for the others."""
    random = torch.Generator().manual_seed(2)
    vectors = torch.randn(40_000, 32, generator=random)
    vectors[:, 0] *= 1e4
    queries = torch.randn(3, 32, generator=random)
    queries[:, 0] = 0
    monkeypatch.setattr(codes, "fastest_codes", lambda dimension: kind)
    index = FlatIndex(vectors)
    found = index.search(queries, K)
    assert index._codes is None
    monkeypatch.setattr(flat, "_ROWS_FOR_CODES", 1 << 30)
    assert torch.equal(found.rows, FlatIndex(vectors).search(queries, K).rows)


def test_codes_are_not_used_where_their_product_is_wrong_or_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.uint8 not in CODES:
        pytest.skip("this build of torch has no product of uint8 and int8")
    for seconds, expected in ((0.7, torch.uint8), (1.3, None)):
        taken = {torch.float32: 1.0, torch.uint8: seconds}
        monkeypatch.setattr(codes, "_seconds", lambda dtypes, dimension, taken=taken: taken)
        assert codes.fastest_codes.__wrapped__(16) == expected
    product = rough.product
    monkeypatch.setattr(codes, "product", lambda rows, queries: product(rows, queries) + 1)
    assert not any(codes.is_exact(dtype, 16) for dtype in rough.LARGEST_CODE)


def test_a_query_beyond_the_rows_type_is_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where rows in float16 are multiplied as they are: float16 ends at 65,504."""
    random = torch.Generator().manual_seed(3)
    rows = torch.randn(NUM_ROWS, 16, generator=random).half()
    queries = torch.randn(2, 16, generator=random)
    queries[0, 3] = 1e5
    taken = rough.of_block(rows, float(rows.double().norm(dim=1).max()), torch.float16).queries(queries)
    assert taken.slack.isinf().tolist() == [True, False]
    assert taken.matrix.isfinite().all()
