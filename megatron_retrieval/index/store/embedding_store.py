"""Vectors of the whole evidence in memory-mapped shards; a manifest names their evidence and encoder."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.errors import DataError, MismatchError
from megatron_retrieval.utils.files import file_fingerprint
from megatron_retrieval.utils.manifest import MANIFEST, ManifestFormat

FORMAT = ManifestFormat(
    what="embeddings",
    version=1,
    hint="Embed the evidence with megatron-retrieval embed, which continues an unfinished folder.",
)

StorageDtype = Literal["float32", "bfloat16", "float16"]


def torch_dtype(name: StorageDtype) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@dataclass(frozen=True)
class StoreIdentity:
    """Which evidence and encoder vectors belong to, and how they are stored.

    Attributes:
        dtype: type in which they are stored.
        precision: type in which the encoder computed them; empty where unknown.
        embedding_size: numbers that each vector was cut to; 0: it is whole.
    """

    evidence_fingerprint: str
    encoder_fingerprint: str
    num_rows: int
    dtype: StorageDtype
    precision: str = ""
    embedding_size: int = 0


@dataclass(frozen=True)
class Shard:
    """One file of a fixed range of rows."""

    file: str
    num_rows: int
    checksum: str


@dataclass(frozen=True)
class EmbeddingManifest:
    """The content of `manifest.json`, written last: a folder without it is unfinished."""

    identity: StoreIdentity
    dimension: int
    rows_per_shard: int
    shards: tuple[Shard, ...]
    created: str

    def write(self, directory: Path) -> None:
        """Seal the folder; all shards must be complete."""
        entries = {
            **vars(self.identity),
            "dimension": self.dimension,
            "rows_per_shard": self.rows_per_shard,
            "created": self.created,
            "shards": [vars(shard) for shard in self.shards],
        }
        FORMAT.write(directory, entries)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The manifest of finished embeddings.

        Raises:
            DataError: missing, cut off, of another version, or inconsistent.
        """
        with FORMAT.opened(directory) as entries:
            if entries["dtype"] not in get_args(StorageDtype):
                raise FORMAT.damaged(directory, f"unknown dtype {entries['dtype']!r}")
            entries = {"precision": "", "embedding_size": 0, **entries}  # older stores do not have these
            manifest = cls(
                identity=StoreIdentity(**{name: entries[name] for name in StoreIdentity.__dataclass_fields__}),
                dimension=int(entries["dimension"]),
                rows_per_shard=int(entries["rows_per_shard"]),
                shards=tuple(Shard(**shard) for shard in entries["shards"]),
                created=str(entries["created"]),
            )
            expected = [rows for _, rows in shard_ranges(manifest.identity.num_rows, manifest.rows_per_shard)]
        if [shard.num_rows for shard in manifest.shards] != expected:
            raise FORMAT.damaged(directory, "the shards do not add up to the rows of the evidence")
        return manifest


class EmbeddingStore:
    """Finished embeddings in a folder; a `VectorSource`.

    Opening reads the manifest and the sizes of the shards; vectors are mapped when they are asked for. Files that
    the manifest does not name are ignored.

    Args:
        directory: the folder that `EmbeddingWriter` filled.

    Raises:
        DataError: unfinished, a shard missing or of the wrong size, or the manifest damaged.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.manifest = EmbeddingManifest.read(self.directory)
        self._mapped: dict[int, Tensor] = {}
        row_bytes = self.manifest.dimension * torch_dtype(self.manifest.identity.dtype).itemsize
        FORMAT.require_sizes(self.directory, {shard.file: shard.num_rows * row_bytes for shard in self.manifest.shards})

    def __len__(self) -> int:
        return self.manifest.identity.num_rows

    @property
    def dimension(self) -> int:
        return self.manifest.dimension

    @property
    def fingerprint(self) -> str:
        """Names the vectors: equal for equal bytes."""
        return file_fingerprint(self.directory / MANIFEST)

    def vectors(self, start: int, stop: int) -> Tensor:
        """[stop - start, D] in the stored type, a view of the file where the rows lie in one shard."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start}..{stop} of {len(self)}")
        size = self.manifest.rows_per_shard
        parts = [
            self._shard(number)[max(0, start - number * size) : stop - number * size]
            for number in range(start // size, math.ceil(stop / size))
        ]
        if len(parts) == 1:
            return parts[0]
        empty = torch.empty(0, self.dimension, dtype=torch_dtype(self.manifest.identity.dtype))
        return torch.cat(parts) if parts else empty

    def vectors_of(self, rows: Tensor) -> Tensor:
        """[n, D] of the rows [n] int64, in the stored type; each shard is looked into once."""
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows {int(rows.min())}..{int(rows.max())} of {len(self)}")
        size = self.manifest.rows_per_shard
        shards = rows // size
        order, counts = shards.argsort(stable=True), shards.bincount()
        numbers = counts.nonzero()[:, 0].tolist()
        parts = [self.vectors(0, 0)]
        for number, places in zip(numbers, order.split(counts[numbers].tolist()), strict=True):
            parts.append(self._shard(number).index_select(0, rows[places] - number * size))
        found = torch.cat(parts)
        return found if len(numbers) < 2 else torch.empty_like(found).index_copy_(0, order, found)

    def read(self, start: int, stop: int) -> Tensor:
        """The same as a copy: no page of the file is mapped, to count as this process's memory from then on.

        Raises:
            DataError: a shard was removed since the folder was opened.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start}..{stop} of {len(self)}")
        target = torch.empty(stop - start, self.dimension, dtype=torch_dtype(self.manifest.identity.dtype))
        size, done, row_bytes = self.manifest.rows_per_shard, 0, self.dimension * target.element_size()
        content = target.view(torch.uint8).view(-1).numpy().data
        while start + done < stop:
            number, first = divmod(start + done, size)
            rows = min(size - first, stop - start - done)
            path = self.directory / self.manifest.shards[number].file
            try:
                with path.open("rb", buffering=0) as file:
                    file.seek(first * row_bytes)
                    self._fill(file, content[done * row_bytes : (done + rows) * row_bytes])
            except FileNotFoundError as error:
                raise DataError(path, "was removed while it was searched") from error
            done += rows
        return target

    def require(self, *, evidence_fingerprint: str | None = None, encoder_fingerprint: str | None = None) -> None:
        """Refuse vectors of another evidence or another encoder.

        Raises:
            MismatchError: naming the two things that do not belong together.
        """
        identity = self.manifest.identity
        if evidence_fingerprint is not None and identity.evidence_fingerprint != evidence_fingerprint:
            raise MismatchError(
                f"The embeddings in {self.directory} are of evidence {identity.evidence_fingerprint}, but the evidence "
                f"given is {evidence_fingerprint}; embed this evidence, or give the one that was embedded."
            )
        if encoder_fingerprint is not None and identity.encoder_fingerprint != encoder_fingerprint:
            raise MismatchError(
                f"The embeddings in {self.directory} were made by encoder {identity.encoder_fingerprint}, but the "
                f"checkpoint given is encoder {encoder_fingerprint}; embed the evidence with this checkpoint, or give "
                "the checkpoint that made the embeddings."
            )

    def verify(self, part: int = 0, num_parts: int = 1) -> None:
        """Read every shard, or those that belong to one of so many parts, and compare checksums.

        Raises:
            DataError: a shard's content is not what was written.
        """
        for shard in self.manifest.shards[part::num_parts]:
            path = self.directory / shard.file
            if file_fingerprint(path) != shard.checksum:
                raise DataError(path, "the checksum differs from the manifest's", hint=FORMAT.hint)

    @staticmethod
    def _fill(file: io.FileIO, target: memoryview) -> None:
        """One read of a file may return less than was asked for."""
        while target:
            count = file.readinto(target)
            if not count:
                raise DataError(Path(str(file.name)), "the shard ends early", hint=FORMAT.hint)
            target = target[count:]

    def _shard(self, number: int) -> Tensor:
        if number not in self._mapped:
            # Copy-on-write, because torch warns about read-only memory; nobody writes to it.
            path = self.directory / self.manifest.shards[number].file
            mapped = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c"))
            self._mapped[number] = mapped.view(torch_dtype(self.manifest.identity.dtype)).view(-1, self.dimension)
        return self._mapped[number]


def shard_ranges(num_rows: int, rows_per_shard: int) -> list[tuple[int, int]]:
    """(first row, number of rows) of every shard."""
    return [(start, min(rows_per_shard, num_rows - start)) for start in range(0, num_rows, rows_per_shard)]
