"""Memory and time of exact search from disk, and of opening a large store; prints both.

Makes a store of random bfloat16 vectors (few of them, written again and again), searches it in a process of its own
with --index-placement disk, and removes it. A second store, of empty sparse files, is only opened.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.index.store.embedding_store import (
    EmbeddingManifest,
    EmbeddingStore,
    Shard,
    StoreIdentity,
    shard_ranges,
)
from megatron_retrieval.index.store.embedding_writer import MAX_ROWS_PER_SHARD

MIB = 2**20


@dataclass(kw_only=True, frozen=True)
class SearchMemoryConfig(Checked):
    """Measure the memory that exact search from disk takes."""

    folder: Path | None = None
    """Where the store is made, and removed again; default: the system's temporary folder."""
    num_rows: PositiveInt = 4_000_000
    """Vectors that are searched."""
    num_rows_opened: PositiveInt = 21_015_324
    """Vectors of the store that is only opened."""
    dimension: PositiveInt = 768
    """Dimension of the vectors."""
    num_queries: PositiveInt = 64
    """Queries of the search."""
    k: PositiveInt = 50
    """Rows wanted."""


def main(config: SearchMemoryConfig) -> None:
    parent = Path(tempfile.mkdtemp(prefix="search-memory-", dir=config.folder))
    try:
        size = 2 * config.num_rows * config.dimension
        if shutil.disk_usage(parent).free < 1.1 * size:
            raise ConfigError(f"--folder: {parent.parent} has no room for {size / 1e9:.1f} GB; name another folder.")
        make_store(parent / "opened", config.num_rows_opened, config.dimension, content=None)
        make_store(parent / "searched", config.num_rows, config.dimension, _content(config.dimension))
        seconds, mebibytes = in_process_of_its_own(open_store, parent / "opened")
        sys.stdout.write(f"opening {config.num_rows_opened:,} rows: {seconds:.3f} s, {mebibytes:.0f} MiB more\n")
        measured = in_process_of_its_own(search_store, parent / "searched", config.num_queries, config.k)
        seconds, mebibytes, peak = measured
        sys.stdout.write(
            f"searching {size / MIB:,.0f} MiB: {seconds:.1f} s, {mebibytes:.0f} MiB more, {peak:.0f} MiB in all\n"
        )
    finally:
        shutil.rmtree(parent)


def make_store(directory: Path, num_rows: int, dimension: int, content: bytes | None) -> None:
    """A finished store in bfloat16: `content` (of MAX_ROWS_PER_SHARD rows) in every shard, or sparse files of zeros."""
    directory.mkdir()
    shards = []
    for number, (_, rows) in enumerate(shard_ranges(num_rows, MAX_ROWS_PER_SHARD)):
        path = directory / f"shard-{number:05d}.bin"
        if content is None:
            path.touch()
            os.truncate(path, rows * dimension * 2)
        else:
            path.write_bytes(memoryview(content)[: rows * dimension * 2])
        shards.append(Shard(path.name, rows, checksum=""))
    identity = StoreIdentity("evidence", "encoder", num_rows, "bfloat16")
    manifest = EmbeddingManifest(identity, dimension, MAX_ROWS_PER_SHARD, tuple(shards), created="")
    manifest.write(directory)


def _content(dimension: int) -> bytes:
    rows = torch.randn(MAX_ROWS_PER_SHARD, dimension, generator=torch.Generator().manual_seed(0)).bfloat16()
    return rows.view(torch.uint8).numpy().tobytes()


def open_store(directory: Path) -> tuple[float, ...]:
    """Seconds, and what the peak of memory grew by, in MiB."""
    before, started = _peak_mebibytes(), time.perf_counter()
    index = FlatIndex(EmbeddingStore(directory))
    assert index.num_rows > 0
    return time.perf_counter() - started, _peak_mebibytes() - before


def search_store(directory: Path, num_queries: int, k: int) -> tuple[float, ...]:
    """Seconds of a search from disk, what the peak of memory grew by, and the peak of the whole process, in MiB."""
    index = FlatIndex(EmbeddingStore(directory), placement="disk")
    queries = torch.randn(num_queries, index.dimension, generator=torch.Generator().manual_seed(1))
    before, started = _peak_mebibytes(), time.perf_counter()
    index.search(queries, k)
    return time.perf_counter() - started, _peak_mebibytes() - before, _peak_mebibytes()


def in_process_of_its_own(measure: Callable[..., tuple[float, ...]], *words: object) -> tuple[float, ...]:
    """What `measure` returns in a new process, so that its peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, words)


def _peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


if __name__ == "__main__":
    run_program(SearchMemoryConfig, main)
