"""Time of exact search on CPU against other libraries' search, on the same vectors, with rows compared.

The vectors have random directions, alone or in clusters; the others hold them in float32, this project as they are
stored. The two take turns, and a ratio is that of neighbours. faiss's flat index and usearch must find the same rows,
except where the scores in float64 at that place differ by less than float32 can tell; faiss's 8-bit quantizer, whose
best rows are scored again, may miss some.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import faiss
import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, NonNegativeInt, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import ConfigError, MismatchError
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.index.store.embedding_store import StorageDtype, torch_dtype
from megatron_retrieval.reports.tables import text_table

Rival = Literal["faiss-flat", "faiss-8-bit", "usearch"]
#: rows that the quantizer's index scores again, in units of k
_RESCORED = 4


@dataclass(kw_only=True, frozen=True)
class SearchSpeedConfig(Checked):
    """Compare the speed of exact search with another library's, round by round."""

    rival: Rival = "faiss-flat"
    """What is compared: IndexFlatIP, IndexScalarQuantizer with the best rows scored again, or usearch's exact search
    (`pip install usearch`)."""

    num_rows: PositiveInt = 400_000
    """Vectors searched."""
    dimension: PositiveInt = 384
    """Their dimension."""
    num_clusters: NonNegativeInt = 0
    """Clusters that the vectors, and the queries, lie in; 0: directions have nothing in common."""
    embedding_dtype: StorageDtype = "float16"
    """Type in which vectors are stored."""
    num_queries: tuple[PositiveInt, ...] = (1, 16, 64)
    """Queries asked at once, several numbers one after the other."""
    k: PositiveInt = 100
    """Rows wanted."""
    num_rounds: PositiveInt = 9
    """Searches of each that are timed."""
    num_threads: PositiveInt = 2
    """Threads of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k > self.num_rows:
            raise ConfigError(f"-k {self.k} rows are more than --num-rows {self.num_rows}.")


def main(config: SearchSpeedConfig) -> None:
    torch.set_num_threads(config.num_threads)
    faiss.omp_set_num_threads(config.num_threads)
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(max(1, config.num_clusters), config.dimension, generator=random) * (config.num_clusters > 0)
    vectors = _directions(centres, config.num_rows, random).to(torch_dtype(config.embedding_dtype))
    ours, theirs = FlatIndex(vectors), _rival(config, vectors.float())
    rows = []
    for count in config.num_queries:
        queries = _directions(centres, count, random)
        searches: list[Callable[[], Tensor]] = [
            partial(_found, ours, queries, config.k),
            partial(theirs, queries, config.k),
        ]
        found = [search() for search in searches]
        num_equal = int((found[0] == found[1]).sum())
        if config.rival != "faiss-8-bit":
            _require_same(vectors, queries, *found)
        rows.append(_row(count, _seconds(searches, config.num_rounds), num_equal / (count * config.k)))
    header = ["queries", "ms, median", config.rival, "ratio", "rounds", "equal rows"]
    sys.stdout.write(f"{text_table(header, rows)}\n")


def _found(index: FlatIndex, queries: Tensor, k: int) -> Tensor:
    return index.search(queries, k).rows


def _rival(config: SearchSpeedConfig, vectors: Tensor) -> Callable[[Tensor, int], Tensor]:
    """Searches the other library's index: queries [B, D], k -> rows [B, k]."""
    matrix = vectors.numpy()
    if config.rival == "usearch":
        from usearch.index import MetricKind
        from usearch.index import search as exact_search

        def found(queries: Tensor, k: int) -> Tensor:
            matches = exact_search(matrix, queries.numpy(), k, MetricKind.IP, exact=True, threads=config.num_threads)
            return torch.from_numpy(matches.keys.astype("int64")).view(len(queries), k)

        return found
    if config.rival == "faiss-8-bit":
        kind, metric = faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexRefineFlat(faiss.IndexScalarQuantizer(config.dimension, kind, metric))
        index.k_factor = _RESCORED
        index.train(matrix)
    else:
        index = faiss.IndexFlatIP(config.dimension)
    index.add(matrix)
    return lambda queries, k: torch.from_numpy(index.search(queries.numpy(), k)[1])


def _directions(centres: Tensor, count: int, random: torch.Generator) -> Tensor:
    """[count, D] of length 1 around centres [C, D]."""
    chosen = torch.randint(0, len(centres), (count,), generator=random)
    rows = centres[chosen] + torch.randn(count, centres.size(1), generator=random)
    return torch.nn.functional.normalize(rows, dim=1)


def _require_same(vectors: Tensor, queries: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """Raises MismatchError where rows differ whose scores float32 tells apart."""
    query, place = (ours != theirs).nonzero(as_tuple=True)
    scores = [(vectors[rows[query, place]].double() * queries[query].double()).sum(1) for rows in (ours, theirs)]
    # vectors have length 1, so that this bounds what a sum in float32 may be off by, in any order
    if len(query) and float((scores[0] - scores[1]).abs().max()) > 2 * vectors.size(1) * 2.0**-24:
        raise MismatchError("the other library finds other rows; speeds mean nothing.")


def _seconds(searches: list[Callable[[], Tensor]], num_rounds: int) -> list[list[float]]:
    """What each took in every round."""
    taken: list[list[float]] = [[] for _ in searches]
    for _ in range(num_rounds):
        for search, seconds in zip(searches, taken, strict=True):
            search()  # the threads of the one before are still spinning, and its data fill the caches
            started = time.perf_counter()
            search()
            seconds.append(time.perf_counter() - started)
    return taken


def _row(num_queries: int, seconds: list[list[float]], equal: float) -> list[str]:
    ours, theirs = seconds
    ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
    return [
        str(num_queries),
        f"{1000 * statistics.median(ours):.1f}",
        f"{1000 * statistics.median(theirs):.1f}",
        f"{statistics.median(ratios):.1f}",
        f"{min(ratios):.1f} to {max(ratios):.1f}",
        f"{100 * equal:.2f} %",
    ]


if __name__ == "__main__":
    run_program(SearchSpeedConfig, main)
