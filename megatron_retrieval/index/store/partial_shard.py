"""A partial shard that grows on disk batch by batch; a stop loses at most the batch being encoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_retrieval.utils.disk import writing

#: checksum of the vectors' bytes, rows, width
_HEADER = struct.Struct("<III")


class PartialShard:
    """Batches of vectors, appended to a file as they are made.

    Opening keeps the batches that an earlier attempt finished, if they are complete and of the expected sizes,
    and cuts off the rest.

    Args:
        path: of the file, created with the first batch; None: in memory alone.
        batch_sizes: rows of each batch, in the order in which they are made.
        dtype: of the vectors.
    """

    def __init__(self, path: Path | None, batch_sizes: Sequence[int], dtype: torch.dtype) -> None:
        self._path, self._batch_sizes, self.dtype = path, list(batch_sizes), dtype
        self._batches: list[Tensor] = []
        if path is not None and path.exists():
            self._batches += _whole_batches(path, self._batch_sizes, dtype)
            with open(path, "r+b") as file:
                file.truncate(sum(_HEADER.size + batch.nbytes for batch in self._batches))

    @property
    def num_batches(self) -> int:
        """Batches that are done."""
        return len(self._batches)

    def append(self, vectors: Tensor) -> None:
        """Add the next batch: [n, D] on the CPU, in the type of the others."""
        if self._path is not None:
            content = vectors.contiguous().view(torch.uint8).numpy().tobytes()
            with writing(self._path), open(self._path, "ab") as file:
                file.write(_HEADER.pack(zlib.crc32(content), *vectors.shape) + content)
        self._batches.append(vectors)

    def vectors(self) -> Tensor:
        """[N, D] of all batches, once they are done."""
        if self.num_batches != len(self._batch_sizes):
            raise ValueError(f"{self.num_batches} of {len(self._batch_sizes)} batches are done")
        return torch.cat(self._batches)


def num_rows_in(path: Path, itemsize: int) -> int:
    """Rows of a partial shard, from the size of its file; all batches but the last are of one size."""
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
        size = path.stat().st_size
    except FileNotFoundError:  # not begun, or finished meanwhile
        return 0
    if len(header) < _HEADER.size:
        return 0
    _, num_rows, width = _HEADER.unpack(header)
    row_bytes = max(1, width * itemsize)
    whole, rest = divmod(size, _HEADER.size + num_rows * row_bytes)
    return whole * num_rows + max(0, rest - _HEADER.size) // row_bytes


def _whole_batches(path: Path, batch_sizes: Sequence[int], dtype: torch.dtype) -> Iterator[Tensor]:
    """The batches at the start of the file that are as they were written."""
    with open(path, "rb") as file:
        for size in batch_sizes:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return
            checksum, num_rows, width = _HEADER.unpack(header)
            content = file.read(num_rows * width * dtype.itemsize) if num_rows == size else b""
            if not content or zlib.crc32(content) != checksum:
                return
            yield torch.frombuffer(bytearray(content), dtype=torch.uint8).view(dtype).view(num_rows, width)
