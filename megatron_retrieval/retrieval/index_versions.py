"""Versions of the evidence's embeddings on disk, and the requests for further ones; training and
embedding processes communicate by these files alone.

    FOLDER/version-0000500/             embeddings by the encoder of iteration 500, an ordinary `EmbeddingStore`
    FOLDER/snapshots/iter_0000500/      that encoder, an ordinary checkpoint of a dual encoder
    FOLDER/request.json                 the version that is wanted next; there is one at a time
    FOLDER/given-up.json                the request that no embedder is trying any more
    FOLDER/worker-0.log                 what an embedder says
    FOLDER/lock                         held by the run that uses the folder

Every file appears whole or not at all, so that each side can be killed at any moment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from megatron_retrieval.errors import DataError, MismatchError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore, StoreIdentity
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter
from megatron_retrieval.utils.files import lock_file, read_json, write_json
from megatron_retrieval.utils.manifest import MANIFEST

_VERSION, _REMOVED = "version-", ".removed-"
_REQUEST, _GIVEN_UP, _LOCK = "request.json", "given-up.json", "lock"


@dataclass(frozen=True)
class IndexRequest:
    """A version that is wanted.

    Attributes:
        iteration: training steps that the encoder has taken; names the version and the snapshot.
        encoder_fingerprint: of the snapshot.
        attempt: from 1; higher where an earlier version was unusable.
    """

    iteration: int
    encoder_fingerprint: str
    attempt: int = 1


class IndexVersions:
    """A folder of versions, each named by the iteration whose encoder made it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def snapshots(self) -> Path:
        """The folder of the encoders' checkpoints."""
        return self.folder / "snapshots"

    def snapshot(self, iteration: int) -> Path:
        """The encoder that makes, or made, a version."""
        return self.snapshots / f"iter_{iteration:07d}"

    def path(self, iteration: int) -> Path:
        """The folder of a version."""
        return self.folder / f"{_VERSION}{iteration:07d}"

    def worker_log(self, worker: int) -> Path:
        """What an embedder says goes here."""
        return self.folder / f"worker-{worker}.log"

    def is_complete(self, iteration: int) -> bool:
        """Whether a version is finished; costs a look at the folder, not at the vectors."""
        return (self.path(iteration) / MANIFEST).exists()

    def complete(self) -> list[int]:
        """The finished versions, oldest first."""
        return [iteration for iteration in _numbers(self.folder, _VERSION) if self.is_complete(iteration)]

    def open_for(self, request: IndexRequest, evidence_fingerprint: str) -> EmbeddingStore:
        """The finished version that was asked for.

        Raises:
            DataError: unfinished, or a shard is missing or cut off.
            MismatchError: it is of another evidence, or by another encoder.
        """
        store = EmbeddingStore(self.path(request.iteration))
        store.require(evidence_fingerprint=evidence_fingerprint, encoder_fingerprint=request.encoder_fingerprint)
        return store

    def make_room(self, iteration: int, identity: StoreIdentity) -> None:
        """Remove the folder of a version, unless it holds the same vectors or a part of them."""
        try:
            if EmbeddingWriter(self.path(iteration), identity).is_finished:
                EmbeddingStore(self.path(iteration))
        except (DataError, MismatchError):
            self.remove(iteration)

    def remove(self, iteration: int) -> None:
        """Remove a version, finished or not; it disappears in one step."""
        with contextlib.suppress(FileNotFoundError):
            removed = self.folder / f"{_REMOVED}{iteration:07d}"
            shutil.rmtree(removed, ignore_errors=True)
            os.rename(self.path(iteration), removed)
            shutil.rmtree(removed, ignore_errors=True)

    def prune(self, kept: Collection[int], snapshots: Collection[int] | None = None) -> None:
        """Remove all versions but those of these iterations, and what a killed process left.

        Args:
            snapshots: iterations whose encoders are kept; default: those of the versions.
        """
        for left_over in self.folder.glob(f"{_REMOVED}*"):
            shutil.rmtree(left_over, ignore_errors=True)
        for iteration in set(_numbers(self.folder, _VERSION)) - set(kept):
            self.remove(iteration)
        for iteration in set(_numbers(self.snapshots, "iter_")) - set(kept if snapshots is None else snapshots):
            shutil.rmtree(self.snapshot(iteration), ignore_errors=True)

    def request(self, wanted: IndexRequest) -> None:
        """Ask for a version, in place of whatever was asked for before; that it was given up once is forgotten."""
        (self.folder / _GIVEN_UP).unlink(missing_ok=True)
        write_json(self.folder / _REQUEST, vars(wanted))

    def withdraw(self) -> None:
        """Ask for nothing any more."""
        (self.folder / _REQUEST).unlink(missing_ok=True)

    def requested(self) -> IndexRequest | None:
        """The version that is wanted now."""
        return self._read(_REQUEST)

    def give_up(self, request: IndexRequest) -> None:
        """Say that no embedder is trying any more to fulfil a request."""
        write_json(self.folder / _GIVEN_UP, vars(request))

    def is_given_up(self, request: IndexRequest) -> bool:
        """Whether an embedder said so."""
        return self._read(_GIVEN_UP) == request

    def num_bytes(self, iteration: int) -> int:
        """What a version's files hold so far, unfinished ones included: it changes as long as a version is made."""
        total = 0
        for path in self.path(iteration).glob("*"):
            with contextlib.suppress(FileNotFoundError):  # finished or removed meanwhile
                total += path.stat().st_size
        return total

    def lock(self) -> IO[str]:
        """Keep other runs out of the folder as long as the file that is returned stays open.

        Raises:
            ConfigError: another run uses the folder.
        """
        return lock_file(
            self.folder / _LOCK,
            f"{self.folder}: another run ({{holder}}) keeps its index versions here; give each run an --index-dir of "
            "its own.",
        )

    def _read(self, name: str) -> IndexRequest | None:
        path = self.folder / name
        try:
            return IndexRequest(**read_json(path)) if path.exists() else None
        except DataError:
            if not path.exists():  # withdrawn meanwhile
                return None
            raise


def _numbers(folder: Path, prefix: str) -> list[int]:
    """The iterations that the names of these folders end with, lowest first."""
    numbers = (path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*"))
    return sorted(int(number) for number in numbers if number.isdecimal())
