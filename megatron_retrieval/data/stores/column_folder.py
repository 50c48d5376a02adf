"""Folders of memory-mapped columns with a manifest: the base of evidence, corpus and questions."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike

from megatron_retrieval.data.stores.ragged import Array, Ragged, Rows, token_dtype
from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils.manifest import ManifestFormat


def values_file(column: str) -> str:
    return f"{column}.values"


def offsets_file(column: str) -> str:
    return f"{column}.offsets"


def column_format(what: str, *keys: str, hint: str) -> ManifestFormat:
    """How a folder of columns describes itself.

    Args:
        what: the folder holds.
        keys: entries beyond those of every such folder.
        hint: what to do about a folder that cannot be used.
    """
    return ManifestFormat(what=what, version=1, hint=hint, keys=frozenset(("fingerprint", "file_bytes", *keys)))


class ColumnFolder:
    """A folder of columns, opened in constant time and memory; subclasses map the columns that they know.

    Raises:
        DataError: the folder is missing, incomplete or damaged.
    """

    #: how the folder describes itself, see `column_format`
    format: ClassVar[ManifestFormat]

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.kind, self._hint = self.format.plain, self.format.hint
        self._manifest = self.format.read(self.folder)
        self.format.require_sizes(self.folder, self._manifest["file_bytes"])
        #: names the contents: texts, their order and their tokenization
        self.fingerprint: str = self._manifest["fingerprint"]

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        # another process maps the same files instead of receiving a copy
        return type(self), (self.folder,)

    def _column(self, name: str, dtype: DTypeLike, rows: int) -> Ragged:
        column = Ragged(self._map(values_file(name), dtype), self._map(offsets_file(name), "<i8"))
        self._check_offsets(name, column.offsets, rows, len(column.values))
        return column

    def _check_offsets(self, name: str, offsets: Rows, rows: int, end: int) -> None:
        if len(offsets) != rows + 1 or offsets[-1] != end:
            raise DataError(self.folder / offsets_file(name), "the offsets do not fit the values", hint=self._hint)

    def _map(self, name: str, dtype: DTypeLike) -> Any:
        return map_file(self.folder / name, dtype)


def map_file(path: Path, dtype: DTypeLike) -> Any:
    """A file of plain numbers, memory-mapped."""
    if not path.stat().st_size:
        return np.empty(0, dtype)
    mapped: Array = np.memmap(path, np.dtype(dtype), "r")
    return np.asarray(mapped)  # a plain view of the map: slicing it is several times faster


def write_manifest(folder: Path, store: type[ColumnFolder], fingerprint: str, entries: Mapping[str, object]) -> None:
    """Write the manifest that makes `folder` one of `store`'s; the other files must be complete."""
    store.format.seal(folder, {"fingerprint": fingerprint, **entries})


def stored_dtype(vocabulary: Vocabulary) -> str:
    """The type in which columns hold the vocabulary's ids."""
    return np.dtype(token_dtype(vocabulary.vocab_size)).newbyteorder("<").str


@dataclass(frozen=True)
class EncodedColumn:
    """Values of consecutive rows of one column, and how many belong to each row."""

    values: Array
    lengths: Rows


class OffsetsWriter:
    """Appends to a file of offsets, given the lengths of the sequences.

    Args:
        files: closes the file.
        size_bytes: how much of the file is there already; what follows is dropped.
    """

    def __init__(self, path: Path, files: contextlib.ExitStack, size_bytes: int = 0) -> None:
        self._file = open_for_append(path, files, size_bytes)
        self._end = 0
        if size_bytes:
            self._file.seek(size_bytes - 8)
            self._end = int.from_bytes(self._file.read(8), "little", signed=True)
        else:
            self._file.write(bytes(8))

    def write(self, lengths: Rows) -> bytes:
        """Append one offset for each length; returns the bytes written."""
        if not len(lengths):
            return b""
        offsets = self._end + np.cumsum(lengths)
        self._end = int(offsets[-1])
        content = offsets.astype("<i8", copy=False).tobytes()
        self._file.write(content)
        return content

    def sync(self) -> dict[str, int]:
        """Bring the file to the disk; returns its name and size."""
        return sync_file(self._file)


class ColumnWriter:
    """Appends to a column's two files, of which `size_bytes` (by file name) are there already."""

    def __init__(
        self, folder: Path, name: str, files: contextlib.ExitStack, size_bytes: Mapping[str, int] | None = None
    ) -> None:
        sizes = size_bytes or {}
        values, offsets = values_file(name), offsets_file(name)
        self._values = open_for_append(folder / values, files, sizes.get(values, 0))
        self._offsets = OffsetsWriter(folder / offsets, files, sizes.get(offsets, 0))

    def write(self, column: EncodedColumn) -> tuple[bytes, bytes]:
        """Append the rows; returns the bytes written to either file."""
        content = column.values.tobytes()
        self._values.write(content)
        return content, self._offsets.write(column.lengths)

    def sync(self) -> dict[str, int]:
        """Bring the files to the disk; returns their names and sizes."""
        return {**sync_file(self._values), **self._offsets.sync()}


def sync_file(file: IO[bytes]) -> dict[str, int]:
    """Bring a file to the disk; returns its name and size."""
    file.flush()
    os.fsync(file.fileno())
    return {Path(file.name).name: file.tell()}


def open_for_append(path: Path, files: contextlib.ExitStack, size_bytes: int = 0) -> IO[bytes]:
    """Open `path` (which is created if it is to be empty) behind its first `size_bytes`; the rest is dropped.

    Raises:
        DataError: it is shorter than that.
    """
    if size_bytes and (not path.is_file() or path.stat().st_size < size_bytes):
        raise DataError(path, f"no longer holds the {size_bytes:,} bytes that were written", hint="Begin anew.")
    opened = open(path, "r+b" if size_bytes else "w+b")  # noqa: SIM115, `files` closes it
    file: IO[bytes] = files.enter_context(opened)
    file.truncate(size_bytes)
    file.seek(size_bytes)
    return file
