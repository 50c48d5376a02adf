"""Writes embeddings into a folder; a stop loses at most the batches being encoded."""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.errors import DataError, MegatronRetrievalError, MismatchError
from megatron_retrieval.index.store.embedding_store import (
    EmbeddingManifest,
    EmbeddingStore,
    Shard,
    StorageDtype,
    StoreIdentity,
    shard_ranges,
    torch_dtype,
)
from megatron_retrieval.index.store.partial_shard import PartialShard, num_rows_in
from megatron_retrieval.utils.files import atomic_file, read_json, write_json
from megatron_retrieval.utils.manifest import MANIFEST

PLAN = "plan.json"
MAX_ROWS_PER_SHARD = 65_536
MIN_ROWS_PER_SHARD = 512


def default_rows_per_shard(num_rows: int) -> int:
    """A function of the evidence alone, so that a restart on other ranks finds the same shards: about 64, which
    ranks share evenly, neither tiny nor so large that a stop costs much."""
    return max(MIN_ROWS_PER_SHARD, min(MAX_ROWS_PER_SHARD, math.ceil(num_rows / 64)))


def stored_vectors(vectors: Tensor, rows: Sequence[int], dtype: StorageDtype) -> Tensor:
    """The vectors [n, D] of `rows` as they are stored: contiguous, on the CPU, in `dtype`.

    Raises:
        MegatronRetrievalError: a vector holds NaN or infinity, or does not fit the type.
    """
    if len(vectors) != len(rows):
        raise ValueError(f"{len(rows)} rows, but {len(vectors)} vectors")
    stored = vectors.detach().to("cpu", torch_dtype(dtype)).contiguous()
    finite = torch.isfinite(stored).all(dim=1)
    if not finite.all():
        row = rows[int((~finite).nonzero()[0])]
        raise MegatronRetrievalError(
            f"The encoder's vector of evidence row {row} is not finite in {dtype}; check the checkpoint, or let "
            "embeddings be bfloat16 or float32 (--embedding-dtype; during training --eval-embedding-dtype)."
        )
    return stored


class EmbeddingWriter:
    """Writes shards in any order, from any number of processes; `finish` in one of them writes the manifest.

    A partial shard grows batch by batch in `shard-N.part`. A finished one is `shard-N.bin`; its checksum in
    `shard-N.json` is written last, so a shard with both is done. `plan.json` keeps the identity of the
    vectors, so that a restart with another encoder is refused rather than mixed.

    Args:
        directory: created if missing; may hold an earlier, unfinished attempt.
        identity: what is embedded, by what, in which type.
        rows_per_shard: default: see `default_rows_per_shard`; an earlier attempt's value wins.

    Raises:
        MismatchError: the folder holds embeddings of something else.
    """

    def __init__(self, directory: str | Path, identity: StoreIdentity, rows_per_shard: int | None = None) -> None:
        self.directory, self.identity = Path(directory), identity
        plan = self._existing_plan()
        if plan is None:
            rows_per_shard = rows_per_shard or default_rows_per_shard(identity.num_rows)
            plan = {**vars(identity), "rows_per_shard": rows_per_shard}
            # Processes that start together write the same bytes.
            write_json(self.directory / PLAN, plan)
        self.rows_per_shard = int(plan["rows_per_shard"])
        self._ranges = shard_ranges(identity.num_rows, self.rows_per_shard)

    @property
    def is_finished(self) -> bool:
        return (self.directory / MANIFEST).exists()

    def unfinished_shards(self) -> list[int]:
        """Numbers of the shards that are missing, or whose size is wrong."""
        return [number for number in range(len(self._ranges)) if self._finished(number) is None]

    def rows(self, shard: int) -> range:
        """The rows of the evidence in this shard."""
        first, count = self._ranges[shard]
        return range(first, first + count)

    def begin(self, shard: int, batch_sizes: Sequence[int]) -> PartialShard:
        """The partial shard, with the batches that an earlier attempt finished."""
        return PartialShard(self._part(shard), batch_sizes, torch_dtype(self.identity.dtype))

    def num_rows_written(self) -> int:
        """Rows on disk, written by any process; looks at file sizes only."""
        itemsize = torch_dtype(self.identity.dtype).itemsize
        return sum(
            len(self.rows(number)) if self._path(number).exists() else num_rows_in(self._part(number), itemsize)
            for number in range(len(self._ranges))
        )

    def write(self, shard: int, vectors: Tensor) -> None:
        """Write a finished shard, the vectors [n, D], and delete its partial file.

        Raises:
            MegatronRetrievalError: a vector holds NaN or infinity, or does not fit the type.
        """
        rows = self.rows(shard)
        stored = stored_vectors(vectors, rows, self.identity.dtype)
        content = stored.view(torch.uint8).numpy().data
        with atomic_file(self._path(shard), "wb") as file:
            file.write(content)
        finished = {
            "num_rows": len(rows),
            "dimension": vectors.size(1),
            "bytes": content.nbytes,
            "checksum": hashlib.sha256(content).hexdigest()[:16],
        }
        write_json(self._path(shard).with_suffix(".json"), finished)
        self._part(shard).unlink(missing_ok=True)

    def finish(self) -> EmbeddingStore:
        """Write the manifest, remove what only a restart needs, and open the store; for one process, after all
        others have written."""
        finished = [self._finished(number) for number in range(len(self._ranges))]
        complete = [shard for shard in finished if shard is not None]
        if len(complete) < len(finished):
            raise DataError(self.directory, f"{len(finished) - len(complete)} of {len(finished)} shards are missing")
        dimensions = {int(shard["dimension"]) for shard in complete}
        if len(dimensions) > 1:
            raise DataError(self.directory, f"shards of different dimensions: {sorted(dimensions)}")
        manifest = EmbeddingManifest(
            identity=self.identity,
            dimension=dimensions.pop() if dimensions else 0,
            rows_per_shard=self.rows_per_shard,
            shards=tuple(
                Shard(self._path(number).name, shard["num_rows"], shard["checksum"])
                for number, shard in enumerate(complete)
            ),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        manifest.write(self.directory)
        self.clean_up()
        return EmbeddingStore(self.directory)

    def _existing_plan(self) -> dict[str, Any] | None:
        """The plan of an earlier attempt (or of the finished store), if it is for the same thing."""
        if self.is_finished:
            manifest = EmbeddingManifest.read(self.directory)
            plan = {**vars(manifest.identity), "rows_per_shard": manifest.rows_per_shard}
        elif (self.directory / PLAN).exists():
            plan = {"embedding_size": 0, **read_json(self.directory / PLAN)}
        else:
            return None
        wanted = vars(self.identity)
        different = [name for name in wanted if plan.get(name) != wanted[name]]
        if different or int(plan.get("rows_per_shard", 0)) < 1:
            name = different[0] if different else "rows_per_shard"
            held, own = plan.get(name) or "unknown", wanted.get(name) or "unknown"
            raise MismatchError(
                f"{self.directory} holds embeddings with {name.replace('_', ' ')} {held}, but this job's is {own}; "
                "give the same settings, choose another output folder or remove this one."
            )
        return plan

    def _finished(self, number: int) -> dict[str, Any] | None:
        """The record of a finished shard, or None."""
        path = self._path(number)
        if not path.exists() or not path.with_suffix(".json").exists():
            return None
        try:
            known: dict[str, Any] = read_json(path.with_suffix(".json"))
        except DataError:
            if path.with_suffix(".json").exists():
                raise
            return None  # another process has sealed the folder since
        return known if path.stat().st_size == known["bytes"] and known["num_rows"] == len(self.rows(number)) else None

    def _path(self, number: int) -> Path:
        return self.directory / f"shard-{number:05d}.bin"

    def _part(self, number: int) -> Path:
        return self._path(number).with_suffix(".part")

    def clean_up(self) -> None:
        """Remove files that only a restart needs, and temporary files of killed processes."""
        for number in range(len(self._ranges)):
            self._path(number).with_suffix(".json").unlink(missing_ok=True)
            self._part(number).unlink(missing_ok=True)
        for left_over in self.directory.glob(".shard-*"):
            left_over.unlink(missing_ok=True)
        (self.directory / PLAN).unlink(missing_ok=True)
