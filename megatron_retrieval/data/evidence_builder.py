"""Builds an evidence folder from passage files, in several processes and constant memory."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from megatron_retrieval.data import evidence as layout
from megatron_retrieval.data.evidence_encoding import (
    EncodedChunk,
    EncodedColumn,
    RawPassage,
    encode_chunk,
    start_pool_worker,
    start_worker,
)
from megatron_retrieval.data.id_table import sort_id_table
from megatron_retrieval.data.ragged import Ragged, token_dtype
from megatron_retrieval.data.sources import read_passages
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.tokenizers import WordPieceTokenizer
from megatron_retrieval.utils.files import atomic_directory, write_json
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.progress import progress_bar

_Encode = Callable[[Iterable[RawPassage]], Iterator[EncodedChunk]]

_UNSORTED_HASHES = "unsorted_hashes.u64"
_CHUNK_PASSAGES = 2048
_CHUNKS_AHEAD = 4  # for each worker: enough to keep it busy, few enough to bound the memory


@dataclass(frozen=True, kw_only=True)
class EvidenceBuilderConfig:
    """Build an evidence folder from passage files."""

    input: tuple[str, ...]
    """Passage files: psgs_w100.tsv (columns id, text, title) or JSONL (title, text, optional id), plain or gzip. Rows
    are numbered in this order."""
    output: str
    """Folder to create."""
    vocab_file: str
    """WordPiece vocabulary (vocab.txt) of the encoder that will read the passages."""
    lower_case: bool = True
    """Lower-case the text, as uncased vocabularies need."""
    workers: int = 1
    """Processes that tokenize; the result does not depend on it."""


def build_evidence(config: EvidenceBuilderConfig) -> int:
    """Write the evidence folder; it appears whole or not at all.

    Returns:
        The number of passages.

    Raises:
        DataError: an input is malformed, an id is used twice, or the output exists.
        ConfigError: the number of workers is not positive.
    """
    if config.workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {config.workers}.")
    tokenizer = WordPieceTokenizer(config.vocab_file, config.lower_case)
    with atomic_directory(config.output) as folder:
        shutil.copyfile(config.vocab_file, folder / layout.VOCABULARY)
        with (
            contextlib.ExitStack() as files,
            _encoder(config) as encode,
            progress_bar("evidence", "passages") as progress,
        ):
            writer = _Writer(folder, files)
            for chunk in encode(_raw_passages(config.input)):
                writer.write(chunk)
                progress.update(len(chunk))
        _write_id_table(folder, config.input)
        _write_manifest(folder, writer, tokenizer, config.input)
    get_logger("data").info("evidence: %s passages in %s", f"{writer.num_rows:,}", config.output)
    return writer.num_rows


def _raw_passages(inputs: Iterable[str]) -> Iterator[RawPassage]:
    for path in inputs:
        for _, passage in read_passages(path):
            yield passage.id, passage.title, passage.text


@contextlib.contextmanager
def _encoder(config: EvidenceBuilderConfig) -> Iterator[_Encode]:
    """A function from passages to encoded chunks in the same order."""
    settings = (config.vocab_file, config.lower_case)
    if config.workers == 1:
        start_worker(*settings)
        yield lambda passages: map(encode_chunk, _chunks(passages))
        return
    # not forked from this process: the tokenizer library has threads of its own
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(config.workers, context, start_pool_worker, settings) as pool:
        try:
            yield lambda passages: _encode_in_pool(pool, passages, config.workers * _CHUNKS_AHEAD)
        finally:
            pool.shutdown(cancel_futures=True)


def _encode_in_pool(
    pool: ProcessPoolExecutor, passages: Iterable[RawPassage], max_pending: int
) -> Iterator[EncodedChunk]:
    pending: deque[Future[EncodedChunk]] = deque()
    for chunk in _chunks(passages):
        pending.append(pool.submit(encode_chunk, chunk))
        if len(pending) >= max_pending:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _chunks(passages: Iterable[RawPassage]) -> Iterator[list[RawPassage]]:
    iterator = iter(passages)
    while chunk := list(islice(iterator, _CHUNK_PASSAGES)):
        yield chunk


def _create(path: Path, files: contextlib.ExitStack) -> IO[bytes]:
    return files.enter_context(open(path, "wb"))


class _ColumnWriter:
    """Appends to a column's two files and hashes what it writes."""

    def __init__(self, folder: Path, name: str, files: contextlib.ExitStack) -> None:
        self._values = _create(folder / layout.values_file(name), files)
        self._offsets = _create(folder / layout.offsets_file(name), files)
        self._digests = [hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)]
        self._offsets.write(bytes(8))
        self._end = 0

    @property
    def fingerprint(self) -> str:
        return "".join(digest.hexdigest() for digest in self._digests)

    def write(self, column: EncodedColumn) -> None:
        offsets = self._end + np.cumsum(column.lengths)
        self._end = int(offsets[-1])
        for file, digest, array in zip(
            (self._values, self._offsets), self._digests, (column.values, offsets), strict=True
        ):
            content = array.tobytes()
            file.write(content)
            digest.update(content)


class _Writer:
    """Writes encoded chunks to the files of an evidence folder, in row order."""

    def __init__(self, folder: Path, files: contextlib.ExitStack) -> None:
        self.num_rows = 0
        names = layout.TEXT_COLUMNS + layout.TOKEN_COLUMNS
        self._columns = [_ColumnWriter(folder, name, files) for name in names]
        self._hashes = _create(folder / _UNSORTED_HASHES, files)

    def write(self, chunk: EncodedChunk) -> None:
        for writer, column in zip(self._columns, chunk.columns, strict=True):
            writer.write(column)
        self._hashes.write(chunk.id_hashes.tobytes())
        self.num_rows += len(chunk)

    def fingerprint(self, tokenizer: WordPieceTokenizer) -> str:
        """Names the texts and the tokenizer, from which the rest follows."""
        parts = [column.fingerprint for column in self._columns[: len(layout.TEXT_COLUMNS)]]
        return hashlib.sha256("/".join([*parts, tokenizer.fingerprint]).encode()).hexdigest()[:16]


def _write_id_table(folder: Path, inputs: Sequence[str]) -> None:
    unsorted = folder / _UNSORTED_HASHES
    id_files = [folder / name(layout.TEXT_COLUMNS[0]) for name in (layout.values_file, layout.offsets_file)]
    ids = Ragged(np.memmap(id_files[0], np.uint8, "r"), np.memmap(id_files[1], np.int64, "r"))
    hashes = np.memmap(unsorted, np.uint64, "r")
    duplicate = sort_id_table(hashes, ids, folder / layout.ID_HASHES, folder / layout.ID_ROWS)
    if duplicate is not None:
        (first_path, first_line), (path, line) = _places(inputs, duplicate)
        problem = f"the id {ids[duplicate[0]].tobytes().decode()!r} is already used at {first_path}:{first_line}"
        raise DataError(path, problem, line=line, hint="Every passage needs an id of its own.")
    unsorted.unlink()


def _places(inputs: Sequence[str], rows: tuple[int, int]) -> list[tuple[str, int]]:
    """Where two rows, in ascending order, come from; read again, since it happens only before an error."""
    lines = ((path, line) for path in inputs for line, _ in read_passages(path))
    first = next(islice(lines, rows[0], None))
    return [first, next(islice(lines, rows[1] - rows[0] - 1, None))]


def _write_manifest(folder: Path, writer: _Writer, tokenizer: WordPieceTokenizer, inputs: Sequence[str]) -> None:
    manifest = {
        "format_version": layout.FORMAT_VERSION,
        "num_passages": writer.num_rows,
        "fingerprint": writer.fingerprint(tokenizer),
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "lower_case": tokenizer.lower_case,
            "vocab_size": tokenizer.vocab_size,
            "special": asdict(tokenizer.special),
        },
        "token_dtype": np.dtype(token_dtype(tokenizer.vocab_size)).newbyteorder("<").str,
        "file_bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        "inputs": list(inputs),
    }
    write_json(folder / layout.MANIFEST, manifest)
