"""The neighbour store: for each chunk the rows of the database that are nearest to it, memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from megatron_retrieval.config.parser import from_flat_dict
from megatron_retrieval.data.stores.chunk_selection import ChunkSelectionConfig
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.column_folder import ColumnFolder, column_format
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.errors import DataError, MismatchError

#: each [num_rows, K]: rows of the database, their squared distances, and tokens in a row that both chunks hold
ROWS, DISTANCES, OVERLAP = "rows", "distances.f16", "overlap.u8"
TOOL = "megatron-retrieval find neighbors"

Split = Literal["train", "valid"]


class NeighborStore(ColumnFolder):
    """Opens what `find_neighbors` wrote, in constant time and memory.

    Args:
        folder: of the neighbours.
        chunks: whose neighbours they are.
        database: the chunks that were searched; None: the same.

    Attributes:
        num_saved: K, neighbours of each row.
        selection: which chunks were searched, and which documents are held out.

    Raises:
        DataError: the folder is missing, incomplete or damaged.
        MismatchError: the neighbours are those of other chunks, or are other chunks.
    """

    format = column_format(
        "neighbours",
        "num_rows",
        "num_saved",
        "row_dtype",
        "chunks_fingerprint",
        "database_fingerprint",
        "selection",
        hint=f"Search anew with {TOOL}.",
    )

    def __init__(self, folder: str | Path, chunks: ChunkStore, database: ChunkStore | None = None) -> None:
        super().__init__(folder)
        self.chunks, self.database = chunks, database or chunks
        for whose, store in (("chunks", chunks), ("database", self.database)):
            self._require(whose, store)
        self.num_saved: int = self._manifest["num_saved"]
        self.selection = from_flat_dict(ChunkSelectionConfig, self._manifest["selection"])
        self._rows = self._matrix(ROWS, self._manifest["row_dtype"])
        self._distances, self._overlap = self._matrix(DISTANCES, "<f2"), self._matrix(OVERLAP, "u1")

    def __reduce__(self) -> tuple[type[NeighborStore], tuple[object, ...]]:  # type: ignore[override]
        return type(self), (self.folder, self.chunks, self.database)

    def __len__(self) -> int:
        return len(self.chunks)

    def rows(self, rows: Rows, k: int) -> Rows:
        """[..., k] int64 the rows of the database nearest to `rows` [...], the nearest first; -1 behind the last one.

        Raises:
            DataError: the file holds what is no row.
            ValueError: more are asked for than were saved.
        """
        if k > self.num_saved:
            raise ValueError(f"{k} neighbours of {self.num_saved}")
        found = np.asarray(self._rows[rows, :k], np.int64)
        if found.size and not (-1 <= found.min() <= found.max() < len(self.database)):
            raise DataError(self.folder / ROWS, "holds a number that is no row of the database", hint=self._hint)
        if k > 1 and ((found[..., :-1] < 0) & (found[..., 1:] >= 0)).any():
            raise DataError(self.folder / ROWS, "holds a neighbour behind the place of none", hint=self._hint)
        return found

    def distances(self, rows: Rows, k: int) -> np.ndarray:
        """[..., k] float16 squared distances of `rows`, infinite where there is none."""
        return np.asarray(self._distances[rows, :k])

    def overlap(self, rows: Rows, k: int) -> Rows:
        """[..., k] int64 the length of the longest run of tokens that a chunk and what its neighbour gives have in
        common."""
        return np.asarray(self._overlap[rows, :k], np.int64)

    @property
    def database_ranges(self) -> Rows:
        """[R, 2] the rows of the database that were searched."""
        return self.selection.ranges(self.chunks, self.database)

    def documents(self, split: Split) -> Rows:
        """The numbers of the documents to train on, or of those held out; a group is in one of the two."""
        return np.flatnonzero(self.selection.is_held_out(self.chunks) == (split == "valid"))

    def _matrix(self, name: str, dtype: str) -> np.ndarray:
        values = self._map(name, dtype)
        if values.size != len(self) * self.num_saved:
            raise DataError(self.folder / name, "does not fit the chunks", hint=self._hint)
        return values.reshape(len(self), self.num_saved)

    def _require(self, whose: str, store: ChunkStore) -> None:
        found = self._manifest[f"{whose}_fingerprint"]
        if found != store.fingerprint:
            raise MismatchError(
                f"The neighbours in {self.folder} have {whose} {found}, but {store.folder} is chunks "
                f"{store.fingerprint}; give those that were searched, or search anew with {TOOL}."
            )


def row_dtype(database: ChunkStore) -> str:
    """The type of the numbers of its rows."""
    return "<i4" if len(database) < 1 << 31 else "<i8"
