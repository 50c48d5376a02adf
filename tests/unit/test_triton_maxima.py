"""The kernel that writes only maxima, by Triton's interpreter on the CPU: the same rows as everywhere.

The interpreter of Triton 3.9 multiplies bfloat16 wrongly, so that no test here has vectors of it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_retrieval.index.exact import candidate_filter as sieve
from megatron_retrieval.index.exact import score_tiles as tiles
from megatron_retrieval.index.exact.bounded_products import GROUP_ROWS
from megatron_retrieval.index.exact.flat import FlatIndex

INTERPRETER = "TRITON_INTERPRET"
interpreted = pytest.mark.skipif(
    os.environ.get(INTERPRETER) != "1", reason=f"runs in a process with {INTERPRETER}=1, see the first test"
)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(os.environ.get(INTERPRETER) == "1", reason="this is the process with the interpreter")
def test_all_others_in_a_process_that_interprets_kernels() -> None:
    """Triton reads the variable when it is imported."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__],
        cwd=Path(__file__).parents[2],
        env={**os.environ, INTERPRETER: "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert "7 passed, 1 skipped" in result.stdout


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("num_rows", "dimension", "num_queries"), [(300, 40, 3), (37, 130, 70), (16, 16, 1)])
def test_maxima_are_those_of_a_matrix_product(
    dtype: torch.dtype, num_rows: int, dimension: int, num_queries: int
) -> None:
    from megatron_retrieval.index.exact.triton_maxima import group_maxima

    random = torch.Generator().manual_seed(0)
    rows = torch.randn(num_rows, dimension, generator=random).to(dtype)
    queries = torch.randn(num_queries, dimension, generator=random).to(dtype)
    scores = rows.float() @ queries.float().t()
    expected = torch.stack([group.amax(0) for group in scores.split(GROUP_ROWS)])
    torch.testing.assert_close(group_maxima(rows, queries.t()), expected, rtol=1e-5, atol=1e-4)


@interpreted
def test_rows_are_those_of_kept_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(1)
    distinct = torch.randn(150, 24, generator=random)
    vectors, queries = distinct.repeat(3, 1)[:437], torch.randn(5, 24, generator=random)
    hidden = torch.cat([torch.randint(-1, 437, (5, 20), generator=random), torch.arange(150, 160).expand(5, -1)], 1)
    expected = FlatIndex(vectors).search(queries, 9, hidden)
    monkeypatch.setattr(sieve, "make_tile", tiles.MaximaOnly)
    found = FlatIndex(vectors).search(queries, 9, hidden)
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.scores, expected.scores)
