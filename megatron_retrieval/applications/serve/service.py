"""What the server answers from: opened once, searched by one thread, exchanged for a newer version while it answers."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from megatron_retrieval.applications.answering import Answered, AnsweringConfig, AnswerSession, open_answering
from megatron_retrieval.applications.search import SearchMethod, newest_version
from megatron_retrieval.applications.serve.batching import BatchWorker
from megatron_retrieval.applications.serve.config import ServeConfig
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.errors import MegatronRetrievalError
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.manifest import MANIFEST

#: (folder, time of its manifest in nanoseconds, number of the file) of everything that is open
Stamp = tuple[tuple[str, int, int], ...]

log = get_logger("serve")


@dataclass(frozen=True)
class Version:
    """What is open at one time.

    Attributes:
        number: from 1, higher for those that came later.
        stamp: of its files.
        opened: when.
    """

    number: int
    session: AnswerSession
    stamp: Stamp
    opened: datetime.datetime


class Work(NamedTuple):
    """What questions of one batch have in common; results do not depend on what else is in the batch."""

    is_answer: bool
    method: SearchMethod
    k: int


class Service:
    """Opens what is served and does the requests.

    Args:
        config: all of the server's settings.
        topology: of one process.

    Raises:
        MegatronRetrievalError: something cannot be opened, or does not belong together.
    """

    def __init__(self, config: ServeConfig, topology: ProcessTopology) -> None:
        self._config, self._topology = config, topology
        self._refused: Stamp | None = None
        self._stopping = threading.Event()
        #: the version that new batches are done with
        self.version = self._open(1, stamp_of(config.answering))
        limits = config.limits
        self.worker: BatchWorker[Work, str, tuple[Answered, Version]] = BatchWorker(
            self._do,
            lambda work: limits.answer_batch_size if work.is_answer else limits.batch_size,
            limits.max_waiting,
        )
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        if config.watch_seconds:
            self._watcher.start()

    @property
    def is_refusing(self) -> bool:
        """Whether there are newer files that could not be opened; the log says why."""
        return self._refused is not None

    def submit(self, work: Work, question: str) -> Future[tuple[Answered, Version]]:
        """See `BatchWorker.submit`; the result names the version that it comes from."""
        return self.worker.submit(work, question)

    def look(self) -> None:
        """Open what is newer than the version in use, and use it from the next batch on."""
        stamp = stamp_of(self._config.answering)
        if stamp in (self.version.stamp, self._refused):
            return
        try:
            self.version = self._open(self.version.number + 1, stamp)
            self._refused = None
            log.info("version %d is searched from now on", self.version.number)
        except (MegatronRetrievalError, OSError) as error:  # half of it is there, or was removed meanwhile
            self._refused = stamp
            log.warning("the newer files are not used: %s", error)

    def stop(self) -> None:
        """Finish what waits and end all threads."""
        self._stopping.set()
        self.worker.stop()

    def _open(self, number: int, stamp: Stamp) -> Version:
        session = open_answering(self._config.answering, self._topology)
        # what is read or built at the first use is there before the first question
        first = session.search.evidence.passage(0).text[: self._config.limits.max_question_length]
        for method in session.search.methods:
            session.find([first], 1, method)
        if session.reader is not None:
            session.answer([first], 1)
        return Version(number, session, stamp, datetime.datetime.now(datetime.UTC))

    def _do(self, work: Work, questions: Sequence[str]) -> list[tuple[Answered, Version]]:
        version = self.version  # the same for the whole batch
        session = version.session
        done = session.answer if work.is_answer else session.find
        return [(answered, version) for answered in done(questions, work.k, work.method)]

    def _watch(self) -> None:
        while not self._stopping.wait(self._config.watch_seconds):
            try:
                self.look()
            except Exception:  # the old version still answers
                log.exception("looking for a newer version failed")


def stamp_of(config: AnsweringConfig) -> Stamp:
    """What tells a version from the one before: its folders, and when the manifest of each was written."""
    search = newest_version(config.search)
    checkpoints = [_newest(path) for path in (search.retriever, config.reader) if path is not None]
    index = search.options.approximate.index
    folders = [path for path in (search.evidence, search.embeddings, search.bm25_index, index) if path is not None]
    return tuple(_stamp(folder.resolve()) for folder in [*folders, *checkpoints])


def _newest(path: Path) -> Path:
    try:
        return resolve_checkpoint(path)
    except MegatronRetrievalError:  # opening it says what is wrong
        return path


def _stamp(folder: Path) -> tuple[str, int, int]:
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return str(folder), 0, 0
    return str(folder), status.st_mtime_ns, status.st_ino
