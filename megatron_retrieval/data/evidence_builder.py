"""Builds an evidence folder from passage files, in several processes and constant memory."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from megatron_retrieval.data import evidence as layout
from megatron_retrieval.data.columns import (
    ColumnWriter,
    offsets_file,
    open_for_append,
    values_file,
    write_manifest,
)
from megatron_retrieval.data.evidence_encoding import EncodedChunk, RawPassage, encode_chunk, start_worker
from megatron_retrieval.data.id_table import sort_id_table
from megatron_retrieval.data.ragged import Ragged
from megatron_retrieval.data.sources import read_passages
from megatron_retrieval.data.vocabularies import WORDPIECE
from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers import WordPieceTokenizer
from megatron_retrieval.utils.files import atomic_directory
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.progress import progress_bar
from megatron_retrieval.utils.worker_pool import check_workers, worker_pool

_UNSORTED_HASHES = "unsorted_hashes.u64"
_CHUNK_PASSAGES = 2048


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
    check_workers(config.workers)
    tokenizer = WordPieceTokenizer(config.vocab_file, config.lower_case)
    with atomic_directory(config.output) as folder:
        shutil.copyfile(config.vocab_file, folder / WORDPIECE.file_name)
        with (
            contextlib.ExitStack() as files,
            worker_pool(encode_chunk, config.workers, start_worker, (config.vocab_file, config.lower_case)) as encode,
            progress_bar("evidence", "passages") as progress,
        ):
            writer = _Writer(folder, files)
            for chunk in encode(_chunks(_raw_passages(config.input))):
                writer.write(chunk)
                progress.update(len(chunk))
        _write_id_table(folder, config.input)
        entries = {"num_passages": writer.num_rows, "inputs": list(config.input)}
        write_manifest(folder, layout.EvidenceStore, tokenizer, writer.fingerprint(tokenizer), entries)
    get_logger("data").info("evidence: %s passages in %s", f"{writer.num_rows:,}", config.output)
    return writer.num_rows


def _raw_passages(inputs: Iterable[str]) -> Iterator[RawPassage]:
    for path in inputs:
        for _, passage in read_passages(path):
            yield passage.id, passage.title, passage.text


def _chunks(passages: Iterable[RawPassage]) -> Iterator[list[RawPassage]]:
    iterator = iter(passages)
    while chunk := list(islice(iterator, _CHUNK_PASSAGES)):
        yield chunk


def _digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


class _Writer:
    """Writes encoded chunks to the files of an evidence folder, in row order."""

    def __init__(self, folder: Path, files: contextlib.ExitStack) -> None:
        self.num_rows = 0
        names = layout.TEXT_COLUMNS + layout.TOKEN_COLUMNS
        self._columns = [ColumnWriter(folder, name, files) for name in names]
        self._digests = [(_digest(), _digest()) for _ in layout.TEXT_COLUMNS]
        self._hashes = open_for_append(folder / _UNSORTED_HASHES, files)

    def write(self, chunk: EncodedChunk) -> None:
        written = [writer.write(column) for writer, column in zip(self._columns, chunk.columns, strict=True)]
        for digests, contents in zip(self._digests, written[: len(self._digests)], strict=True):
            for digest, content in zip(digests, contents, strict=True):
                digest.update(content)
        self._hashes.write(chunk.id_hashes.tobytes())
        self.num_rows += len(chunk)

    def fingerprint(self, tokenizer: WordPieceTokenizer) -> str:
        """Names the texts and the tokenizer, from which the rest follows."""
        parts = ["".join(digest.hexdigest() for digest in digests) for digests in self._digests]
        return hashlib.sha256("/".join([*parts, tokenizer.fingerprint]).encode()).hexdigest()[:16]


def _write_id_table(folder: Path, inputs: Sequence[str]) -> None:
    unsorted = folder / _UNSORTED_HASHES
    id_files = [folder / name(layout.TEXT_COLUMNS[0]) for name in (values_file, offsets_file)]
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
