"""Search by distance through inner products equals brute force; rows that tie stay in their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_retrieval.errors import MegatronRetrievalError
from megatron_retrieval.evaluation.overlap import shared_runs
from megatron_retrieval.index.api import TensorVectors
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.index.selected_rows import SelectedRows
from megatron_retrieval.index.squared_distance import SquaredDistanceVectors, distance_queries, squared_distances

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _index(vectors: torch.Tensor) -> FlatIndex:
    return FlatIndex(SquaredDistanceVectors(TensorVectors(vectors)))


def test_hand_case() -> None:
    """Row 0 has the greatest inner product, row 1 the least distance; rows 0 and 2 are equally far."""
    query, vectors = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.9, 0.1], [1.0, -1.0]])
    found = _index(vectors).search(distance_queries(query), 3)
    assert found.rows.tolist() == [[1, 0, 2]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.49, 0.0, 0.0]]), atol=1e-6, rtol=0)
    distances = squared_distances(query, vectors[found.rows])
    torch.testing.assert_close(distances, torch.tensor([[0.02, 1.0, 1.0]]).double(), atol=1e-6, rtol=0)
    assert FlatIndex(vectors).search(query, 1).rows.tolist() == [[0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_equals_brute_force(dtype: torch.dtype, scale: float) -> None:
    """A single column for the norms, in 16 bits, would lose rows."""
    random = torch.Generator().manual_seed(0)
    spread = torch.rand(500, 1, generator=random) * 2 + 0.5
    vectors = (torch.randn(500, 13, generator=random) * spread * scale).to(dtype)
    queries = vectors[::25].float() + torch.randn(20, 13, generator=random) * scale / 4
    exact = squared_distances(queries, vectors.expand(20, -1, -1))
    found = _index(vectors).search(distance_queries(queries), 9)
    assert _index(vectors).dimension == 16
    assert torch.equal(found.rows, exact.argsort(dim=1, stable=True)[:, :9])
    implied = queries.double().square().sum(1, keepdim=True) - 2 * found.scores
    torch.testing.assert_close(implied, exact.gather(1, found.rows), rtol=0, atol=1e-5 * scale**2 * 100)


def test_equal_rows_are_at_no_distance_and_in_order() -> None:
    vectors = torch.randn(7, 30, generator=torch.Generator().manual_seed(0)).half().repeat(3, 1)
    found = _index(vectors).search(distance_queries(vectors[:7].float()), 3)
    assert found.rows.tolist() == [[row, row + 7, row + 14] for row in range(7)]
    assert not squared_distances(vectors[:7].float(), vectors[found.rows]).any()


def test_norms_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MegatronRetrievalError, match=r"do not fit into float16; embed with --embedding-dtype bfloat16"):
        _index(torch.full((2, 9), 200.0).half()).search(distance_queries(torch.zeros(1, 9)), 1)


def test_selected_rows() -> None:
    vectors = torch.arange(40.0).view(20, 2)
    selected = SelectedRows(TensorVectors(vectors), torch.tensor([[2, 4], [7, 8], [15, 19]]))
    rows = torch.tensor([2, 3, 7, 15, 16, 17, 18])
    assert len(selected) == 7
    assert torch.equal(selected.rows(torch.arange(-1, 7)), torch.tensor([-1, *rows]))
    for start in range(8):
        for stop in range(start, 8):
            assert torch.equal(selected.read(start, stop), vectors[rows[start:stop]])
    assert torch.equal(selected.vectors_of(torch.tensor([6, 0])), vectors[[18, 2]])
    before = [sum(bool(row < place) for row in rows) for place in range(21)]
    assert selected.numbers(torch.arange(21)).tolist() == before


def _longest_by_hand(first: list[int], second: list[int]) -> int:
    pairs = [(i, j) for i in range(len(first)) for j in range(len(second))]
    return max(
        (
            length
            for i, j in pairs
            for length in range(1, min(len(first) - i, len(second) - j) + 1)
            if first[i : i + length] == second[j : j + length]
        ),
        default=0,
    )


def test_overlap() -> None:
    chunk, neighbors = np.array([[5, 6, 7, 8]]), np.array([[[1, 6, 7, 9, 5], [8, 5, 6, 7, 2], [5, 6, 7, 8, 0]]])
    no_pad = np.ones_like(neighbors, np.bool_)
    assert shared_runs(chunk, chunk > 0, neighbors, no_pad).tolist() == [[2, 3, 4]]
    no_pad[0, 1, 2:] = no_pad[0, 2] = False
    assert shared_runs(chunk, chunk > 5, neighbors, no_pad).tolist() == [[2, 1, 0]]
    random = np.random.default_rng(0)
    chunks, values = random.integers(0, 3, size=(6, 7)), random.integers(0, 3, size=(6, 4, 9))
    is_token, is_value = random.random(chunks.shape) < 0.9, random.random(values.shape) < 0.9
    expected = [
        [
            _longest_by_hand(np.where(mask, own, 9).tolist(), np.where(shown, value, 8).tolist())
            for value, shown in zip(row, rows, strict=True)
        ]
        for own, mask, row, rows in zip(chunks, is_token, values, is_value, strict=True)
    ]
    assert shared_runs(chunks, is_token, values, is_value).tolist() == expected
