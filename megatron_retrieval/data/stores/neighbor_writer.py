"""Writes a neighbour folder, block by block of rows."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.data.stores.chunk_selection import ChunkSelectionConfig
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.column_folder import open_for_append, sync_file, write_manifest
from megatron_retrieval.data.stores.neighbors import DISTANCES, OVERLAP, ROWS, NeighborStore, row_dtype
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.utils.files import file_fingerprint

#: files, and the types of their numbers
_FILES = {DISTANCES: "<f2", OVERLAP: "u1"}
_GREATEST_DISTANCE = float(np.finfo(np.float16).max)


class NeighborWriter:
    """Appends blocks to the files of a neighbour folder, behind what is there already.

    Args:
        database: whose rows are written.
        files: closes the files.
        sizes: valid bytes of each file; what follows is dropped.
    """

    def __init__(
        self, folder: Path, database: ChunkStore, files: contextlib.ExitStack, sizes: Mapping[str, int] | None = None
    ) -> None:
        self._dtypes = {ROWS: row_dtype(database), **_FILES}
        self._files = {name: open_for_append(folder / name, files, (sizes or {}).get(name, 0)) for name in self._dtypes}

    def write(self, rows: Rows, distances: NDArray[np.floating], overlap: Rows) -> None:
        """Append a block: rows of the database, -1 for none; squared distances, whatever they are there; overlap.

        Each is [n, K].
        """
        found = np.where(rows < 0, np.inf, np.minimum(distances, _GREATEST_DISTANCE))
        for (name, dtype), values in zip(self._dtypes.items(), (rows, found, overlap), strict=True):
            self._files[name].write(values.astype(dtype).tobytes())

    def sync(self) -> dict[str, int]:
        """Flush the files to disk; returns their sizes."""
        return {name: size for file in self._files.values() for name, size in sync_file(file).items()}


def finish_neighbors(
    folder: Path,
    chunks: ChunkStore,
    database: ChunkStore,
    num_saved: int,
    selection: ChunkSelectionConfig,
    origin: Mapping[str, object],
) -> None:
    """Write what makes the folder a neighbour store; its files must be whole.

    Args:
        origin: what else the neighbours depend on, for the record.
    """
    entries = {
        "num_rows": len(chunks),
        "num_saved": num_saved,
        "row_dtype": row_dtype(database),
        "chunks_fingerprint": chunks.fingerprint,
        "database_fingerprint": database.fingerprint,
        "selection": to_flat_dict(selection),
        **origin,
    }
    contents = file_fingerprint(*(folder / name for name in (ROWS, *_FILES)))
    fingerprint = hashlib.sha256(f"{contents}/{entries}".encode()).hexdigest()[:16]
    write_manifest(folder, NeighborStore, fingerprint, entries)
