"""Exact search on one GPU: rows compared with a search in float32, and time against the floor that memory sets.

The floor is the time in which the GPU's memory gives the vectors once, from the bandwidth of a copy measured here.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import ConfigError, MismatchError
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.index.exact.score_tiles import maxima_kernel

_ROWS_AT_ONCE = 1 << 18


@dataclass(kw_only=True, frozen=True)
class SearchGpuConfig:
    """Check and time exact search on a GPU."""

    num_rows: int = 21_015_324
    """Vectors searched, of random directions."""
    num_rows_compared: int = 1_000_000
    """The first of them, on which rows are compared with a search in float32."""
    dimension: int = 768
    """Dimension of the vectors."""
    num_queries: int = 64
    """Queries asked at once."""
    k: int = 50
    """Rows wanted."""
    num_rounds: int = 10
    """Searches that are timed."""

    def __post_init__(self) -> None:
        if not self.k <= self.num_rows_compared <= self.num_rows:
            raise ConfigError("--k must not exceed --num-rows-compared, nor that --num-rows.")


def main(config: SearchGpuConfig) -> None:
    if not torch.cuda.is_available():
        raise ConfigError("This benchmark needs a GPU, and torch finds none here.")
    found = measure(config, torch.device("cuda"))
    sys.stdout.write(
        f"{found['rows_that_tie']:,} of {config.num_queries * config.k:,} rows tie in float32, the others are equal\n"
        f"{torch.cuda.get_device_name()}, {'Triton' if maxima_kernel() else 'torch'}: {found['milliseconds']:.2f} ms, "
        f"{found['times_the_floor']:.2f} times the floor of {found['floor_milliseconds']:.2f} ms\n"
    )


def measure(config: SearchGpuConfig, device: torch.device) -> dict[str, float]:
    """Time of a search, and the floor.

    Raises:
        MismatchError: a row differs from a float32 search's.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    random = torch.Generator(device).manual_seed(0)
    vectors = torch.empty(config.num_rows, config.dimension, dtype=torch.bfloat16, device=device)
    for part in vectors.split(_ROWS_AT_ONCE):
        part.copy_(torch.nn.functional.normalize(torch.randn(part.shape, generator=random, device=device), dim=1))
    queries = torch.randn(config.num_queries, config.dimension, generator=random, device=device)
    queries = torch.nn.functional.normalize(queries, dim=1)
    num_ties = _require_same_rows(vectors[: config.num_rows_compared], queries, config.k)
    index = FlatIndex(vectors)
    index.search(queries, config.k)  # measures the vectors' lengths and compiles
    seconds = _median_seconds(lambda: index.search(queries, config.k), config.num_rounds)
    floor = _floor_seconds(vectors, config.num_rounds)
    return {
        "milliseconds": 1000 * seconds,
        "floor_milliseconds": 1000 * floor,
        "times_the_floor": seconds / floor,
        "rows_that_tie": num_ties,
    }


def _require_same_rows(vectors: Tensor, queries: Tensor, k: int) -> int:
    """The number of rows that differ from a float32 search's, with scores that float32 cannot tell apart.

    Raises:
        MismatchError: it can.
    """
    parts = [queries @ part.float().t() for part in vectors.split(_ROWS_AT_ONCE)]
    expected = torch.cat(parts, 1).topk(k).indices
    found = FlatIndex(vectors).search(queries, k).rows
    query, place = (found != expected).nonzero(as_tuple=True)
    scores = [(vectors[rows[query, place]].double() * queries[query].double()).sum(1) for rows in (found, expected)]
    if len(query) and float((scores[0] - scores[1]).abs().max()) > 2 * vectors.size(1) * 2.0**-24:
        raise MismatchError("a search in float32 finds other rows; speeds mean nothing.")
    return len(query)


def _floor_seconds(vectors: Tensor, num_rounds: int) -> float:
    """What reading the vectors once takes, at half of the time of a copy, which reads and writes."""
    part = vectors[: max(1, min(len(vectors), (4 << 30) // (2 * vectors.size(1))))]
    target = torch.empty_like(part)
    copied = _median_seconds(lambda: target.copy_(part), num_rounds)
    return copied / 2 * len(vectors) / len(part)


def _median_seconds(work: Callable[[], object], num_rounds: int) -> float:
    taken = []
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(num_rounds):
        wait()
        started = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


if __name__ == "__main__":
    run_program(SearchGpuConfig, main)
