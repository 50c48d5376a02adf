"""The kernel that writes only maxima, on the CPU: Triton compiles it for GPUs, and interpreted it finds the same rows.

`make triton` installs Triton beside the environment for these tests. The interpreter of Triton 3.6 fails on NumPy 2.4
and that of 3.9 multiplies bfloat16 wrongly, so that no test here has vectors of it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
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


def needs_triton(test: Callable[..., None]) -> Callable[..., None]:
    """In a process that can compile."""
    has_none = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
    interprets = os.environ.get(INTERPRETER) == "1"
    return has_none(pytest.mark.skipif(interprets, reason="this is the process with the interpreter")(test))


@needs_triton
@pytest.mark.parametrize(("capability", "product"), [(80, "mma.sync"), (90, "wgmma")])
def test_it_compiles_for_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: int, product: str) -> None:
    """For matrix units in half precision, and within the shared memory of a block, which is 99 KiB on the smallest."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from megatron_retrieval.index.exact.triton_maxima import _write_maxima

    numbers = dict.fromkeys(["num_rows", "num_queries", "dimension"], "i32")
    for dtype, num_queries in (("fp16", 64), ("bf16", 16), ("fp32", 64)):
        tiles = {"tile_rows": 128, "tile_queries": num_queries, "tile_width": 64, "group_rows": GROUP_ROWS}
        pointers = {"rows": f"*{dtype}", "queries": f"*{dtype}", "maxima": "*fp32"}
        signature = {**pointers, **numbers, **dict.fromkeys(tiles, "constexpr")}
        source = ASTSource(fn=_write_maxima, signature=signature, constexprs=tiles)
        kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert kernel.asm["cubin"]
        assert (product if dtype != "fp32" else "fma.rn") in kernel.asm["ptx"]
        assert kernel.metadata.shared <= 99 * 1024


@needs_triton
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
    assert "7 passed, 3 skipped" in result.stdout


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
