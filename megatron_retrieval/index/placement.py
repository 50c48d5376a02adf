"""Where the vectors of an index stand while they are searched: in memory, or on disk, read block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import psutil  # type: ignore[import-untyped]
from torch import Tensor

from megatron_retrieval.index.api import VectorSource

Placement = Literal["auto", "memory", "disk"]

#: share of the free memory that the indexes of a machine's processes take together, unless told otherwise
_SHARE_OF_MEMORY = 0.5


def fits_in_memory(num_bytes: int, placement: Placement) -> bool:
    """Whether a copy of vectors of that size is to be kept, here and by every other process on this machine."""
    if placement != "auto":
        return placement == "memory"
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    available: int = psutil.virtual_memory().available
    return num_bytes * processes <= _SHARE_OF_MEMORY * available


def read_ahead(source: VectorSource, block_rows: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, vectors) of block after block; the next one is read while one is searched, and no more are held."""
    starts = range(0, len(source), max(1, block_rows))
    with ThreadPoolExecutor(1, "read-vectors") as reader:
        ahead = None
        for start in starts:
            block = ahead.result() if ahead is not None else _read(source, start, block_rows)
            ahead = reader.submit(_read, source, start + block_rows, block_rows) if start != starts[-1] else None
            yield start, block


def _read(source: VectorSource, start: int, block_rows: int) -> Tensor:
    return source.read(start, min(start + block_rows, len(source)))
