"""The files of a folder of salient spans while it is built."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from megatron_retrieval.data.salient.sentences import FoundSpans
from megatron_retrieval.data.salient.wordings import Hashes, find_held, passage_ids, write_distinct
from megatron_retrieval.data.stores import salient as layout
from megatron_retrieval.data.stores.column_folder import (
    ColumnWriter,
    offsets_file,
    open_for_append,
    sync_file,
    values_file,
)
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.utils.disk import allocate
from megatron_retrieval.utils.partial_folder import PartialFolder
from megatron_retrieval.utils.progress import progress_bar
from megatron_retrieval.utils.worker_pool import worker_pool

_BEGINNINGS, _WORDINGS = "beginnings.hashes", "wordings.hashes"
_DISTINCT_BEGINNINGS, _DISTINCT_WORDINGS = "distinct-beginnings", "distinct-wordings"
_HELD, _HOLDING = "held.i64", "holding.i64"
_CHUNK_PASSAGES, _BLOCK = 2048, 1 << 18


@dataclass
class SpanProgress:
    """Progress of a build, kept in the journal of the unfinished folder.

    Attributes:
        texts: read.
        census: how many of what were seen, kept and left out.
        is_read: all texts are.
        searched: passages in which sentences were looked for.
        has_holders: the passages that hold each wording are written; what they were found with is needed no more.
        file_bytes: valid size of each file.
    """

    texts: int = 0
    sentences: int = 0
    spans: int = 0
    wordings: int = 0
    census: dict[str, int] = field(default_factory=dict)
    is_read: bool = False
    searched: int = 0
    has_holders: bool = False
    file_bytes: dict[str, int] = field(default_factory=dict)


class SpanWriter:
    """Appends sentences, in order, to the files of the folder; bytes beyond `progress` are dropped."""

    def __init__(self, folder: Path, progress: SpanProgress) -> None:
        self._files, self._progress = contextlib.ExitStack(), progress
        sizes = progress.file_bytes
        self._sentences, self._spans = (
            ColumnWriter(folder, name, self._files, sizes) for name in (layout.SENTENCES, layout.SPANS)
        )
        names = (layout.PASSAGES, _BEGINNINGS, _WORDINGS)
        self._numbers = [open_for_append(folder / name, self._files, sizes.get(name, 0)) for name in names]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()

    def write(self, found: FoundSpans) -> None:
        self._sentences.write(found.sentences)
        self._spans.write(found.spans)
        for file, numbers in zip(self._numbers, (found.rows, *found.hashes.T), strict=True):
            file.write(numbers.tobytes())
        progress = self._progress
        progress.texts += found.num_texts
        progress.sentences += len(found.rows)
        progress.spans += len(found.spans.values) // 3
        for name, count in found.census.items():
            progress.census[name] = progress.census.get(name, 0) + count

    def sync(self) -> dict[str, object]:
        """Flush the files to disk; returns the progress for the journal."""
        parts = [self._sentences.sync(), self._spans.sync(), *map(sync_file, self._numbers)]
        self._progress.file_bytes = {name: size for part in parts for name, size in part.items()}
        return asdict(self._progress)


class _Tables(NamedTuple):
    """What a worker looks passages' texts up in."""

    evidence: EvidenceStore
    beginnings: Hashes
    wordings: Hashes


def add_holders(evidence: EvidenceStore, output: PartialFolder, progress: SpanProgress, workers: int) -> None:
    """Find the passages that hold each wording, and write them to the folder; continues after a stop."""
    folder = output.contents
    for name, distinct in ((_BEGINNINGS, _DISTINCT_BEGINNINGS), (_WORDINGS, _DISTINCT_WORDINGS)):
        if not progress.searched:
            write_distinct(np.memmap(folder / name, np.uint64, "r"), folder / distinct)
    wordings = np.memmap(folder / _DISTINCT_WORDINGS, np.uint64, "r")
    progress.wordings = len(wordings)
    _search(evidence, output, progress, workers)
    hashes = np.memmap(folder / _WORDINGS, np.uint64, "r")
    with open(folder / layout.WORDINGS, "wb") as file:
        for start in range(0, len(hashes), _BLOCK):
            file.write(np.searchsorted(wordings, hashes[start : start + _BLOCK]).astype("<i8").tobytes())
        sync_file(file)
    _group(folder, len(wordings))
    progress.has_holders = True
    output.save(asdict(progress))


def _search(evidence: EvidenceStore, output: PartialFolder, progress: SpanProgress, workers: int) -> None:
    """Append the pairs of a wording and a passage that holds it, ordered by passage."""
    names = (_HELD, _HOLDING)
    with (
        contextlib.ExitStack() as files,
        worker_pool(_held, workers, partial(_open_tables, evidence.folder, output.contents)) as find,
        progress_bar("passages that hold them", "passages", len(evidence)) as bar,
    ):
        opened = [open_for_append(output.contents / name, files, progress.file_bytes.get(name, 0)) for name in names]

        def sync() -> dict[str, object]:
            for file in opened:
                progress.file_bytes |= sync_file(file)
            return asdict(progress)

        bar.update(progress.searched)
        for number, pair in find(_ranges(progress.searched, len(evidence))):
            for file, numbers in zip(opened, pair, strict=True):
                file.write(numbers.astype("<i8").tobytes())
            progress.searched += number
            bar.update(number)
            output.save_if_due(sync)
        output.save(sync())


def _ranges(first: int, end: int) -> Iterator[range]:
    return (range(start, min(start + _CHUNK_PASSAGES, end)) for start in range(first, end, _CHUNK_PASSAGES))


def _open_tables(evidence: Path, folder: Path) -> _Tables:
    tables = (np.memmap(folder / name, np.uint64, "r") for name in (_DISTINCT_BEGINNINGS, _DISTINCT_WORDINGS))
    return _Tables(EvidenceStore(evidence), *tables)


def _held(tables: _Tables, rows: range) -> tuple[int, tuple[Rows, Rows]]:
    """A task of a worker process: which wordings the passages `rows` hold."""
    wordings, places = find_held(passage_ids(tables.evidence, rows), tables.beginnings, tables.wordings)
    return len(rows), (wordings, places + rows.start)


def _group(folder: Path, num_wordings: int) -> None:
    """Write the column of holders from the pairs: for each wording its passages, ascending."""
    held, holding = (_mapped(folder / name) for name in (_HELD, _HOLDING))
    offsets = np.memmap(allocate(folder / offsets_file(layout.HOLDERS), 8 * (num_wordings + 1)), "<i8", "r+")
    offsets[:] = 0
    # while the values are written, offsets[w + 1] is where the next one of wording w belongs
    for start in range(0, len(held), _BLOCK):
        numbers, counts = np.unique(held[start : start + _BLOCK], return_counts=True)
        inside = numbers + 2 <= num_wordings
        offsets[numbers[inside] + 2] += counts[inside]
    for start in range(1, num_wordings + 1, _BLOCK):
        block = offsets[start : start + _BLOCK]
        block[:] = np.cumsum(block) + offsets[start - 1]
    values_path = allocate(folder / values_file(layout.HOLDERS), 8 * len(held))
    values = np.memmap(values_path, "<i8", "r+") if len(held) else np.empty(0, np.int64)
    for start in range(0, len(held), _BLOCK):
        block = held[start : start + _BLOCK]
        order = np.argsort(block, kind="stable")
        numbers, firsts, counts = np.unique(block[order], return_index=True, return_counts=True)
        targets = np.repeat(offsets[numbers + 1] - firsts, counts) + np.arange(len(block))
        values[targets] = holding[start : start + _BLOCK][order]
        offsets[numbers + 1] += counts
    for written in (values, offsets):
        if isinstance(written, np.memmap):
            written.flush()


def _mapped(path: Path) -> Rows:
    return np.memmap(path, "<i8", "r") if path.stat().st_size else np.empty(0, np.int64)
