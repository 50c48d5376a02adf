"""Builds an evidence folder from passage files, in several processes and constant memory; continues after a stop."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.stores import evidence as layout
from megatron_retrieval.data.stores.column_folder import (
    ColumnWriter,
    offsets_file,
    open_for_append,
    sync_file,
    values_file,
    write_manifest,
)
from megatron_retrieval.data.stores.evidence_encoding import EncodedChunk, RawPassage, encode_chunk
from megatron_retrieval.data.stores.id_table import sort_id_table
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.data.stores.token_folder import token_entries, write_vocabulary
from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabularies import VOCABULARIES, open_encoder_vocabulary
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.partial_folder import PartialFolder, input_states, partial_folder
from megatron_retrieval.utils.progress import progress_bar
from megatron_retrieval.utils.worker_pool import worker_pool

_UNSORTED_HASHES = "unsorted_hashes.u64"
_CHUNK_PASSAGES = 2048


@dataclass(frozen=True, kw_only=True)
class EvidenceBuilderConfig(Checked):
    """Build an evidence folder from passage files; run it again to continue after a stop."""

    input: tuple[str, ...]
    """Passage files: psgs_w100.tsv, corpora of BEIR, Tevatron, MS MARCO and Pyserini, tables, JSON, Parquet, Arrow;
    plain or gzip. Rows are numbered in this order."""
    columns: tuple[str, ...] = ()
    """Names of the columns (id, title, text) of tables without a header; default: id and text where there are two."""
    output: str
    """Folder to create; unfinished work is kept in OUTPUT.partial."""
    vocab_file: str
    """Vocabulary of the encoder that will read the passages: WordPiece (vocab.txt), or byte-level BPE or unigram
    (tokenizer.json)."""
    lower_case: bool = True
    """Lower-case the text, as uncased WordPiece vocabularies need."""
    workers: PositiveInt = 1
    """Processes that tokenize; the result does not depend on it."""

    def open_vocabulary(self) -> Vocabulary:
        """What the passages are tokenized with."""
        return open_encoder_vocabulary(self.vocab_file, self.lower_case)


@dataclass
class EvidenceProgress:
    """Progress of a build, kept in the journal of the unfinished folder.

    Attributes:
        file_bytes: valid size of each file.
        fingerprint: of the evidence, once all passages are written.
    """

    passages: int = 0
    file_bytes: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""


def build_evidence(config: EvidenceBuilderConfig) -> int:
    """Write the evidence folder, which appears when it is complete; the same call continues after a stop.

    Returns:
        The number of passages.

    Raises:
        DataError: an input is malformed or changed meanwhile, an id is used twice, or the output exists.
    """
    tokenizer = config.open_vocabulary()
    with partial_folder(config.output, _settings(config, tokenizer)) as partial:
        if partial.is_published:
            partial.discard()
            return len(layout.EvidenceStore(config.output))
        try:
            progress = EvidenceProgress(**partial.state)
            if not progress.fingerprint:
                _write_columns(config, partial, tokenizer, progress)
            _finish(config, partial, tokenizer, progress)
        except DataError:  # the input must be corrected first, so the unfinished work is useless
            partial.discard()
            raise
        partial.publish()
    get_logger("data").info("evidence: %s passages in %s", f"{progress.passages:,}", config.output)
    return progress.passages


def _settings(config: EvidenceBuilderConfig, tokenizer: Vocabulary) -> dict[str, object]:
    """Everything that the result, or its division into tasks, depends on."""
    library = VOCABULARIES[tokenizer.kind].library
    return {
        "--input": list(config.input),
        **({"--columns": list(config.columns)} if config.columns else {}),
        **input_states(config.input),
        "the vocabulary of --vocab-file": tokenizer.fingerprint,
        "--lower-case": config.lower_case,
        f"the version of {library}": version(library),
    }


def _write_columns(
    config: EvidenceBuilderConfig, partial: PartialFolder, tokenizer: Vocabulary, progress: EvidenceProgress
) -> None:
    """Write the passages that are not counted in `progress` yet, and update it."""
    if progress.passages:
        get_logger("data").info("continuing behind %s passages", f"{progress.passages:,}")
    with (
        contextlib.ExitStack() as files,
        worker_pool(encode_chunk, config.workers, config.open_vocabulary) as encode,
        progress_bar("evidence", "passages") as bar,
    ):
        writer = _Writer(partial.contents, files, progress)
        partial.save(writer.sync())
        passages = islice(_raw_passages(config), progress.passages, None)
        bar.update(progress.passages)
        for chunk in encode(_chunks(passages)):
            writer.write(chunk)
            bar.update(len(chunk))
            partial.save_if_due(writer.sync)
        progress.fingerprint = writer.fingerprint(tokenizer)
        partial.save(writer.sync())
    if _settings(config, tokenizer) != partial.settings:
        raise DataError(", ".join(config.input), "changed while being read")


def _raw_passages(config: EvidenceBuilderConfig) -> Iterator[RawPassage]:
    for path in config.input:
        for _, passage in read_passages(path, config.columns):
            yield passage.id, passage.title, passage.text


def _chunks(passages: Iterable[RawPassage]) -> Iterator[list[RawPassage]]:
    iterator = iter(passages)
    while chunk := list(islice(iterator, _CHUNK_PASSAGES)):
        yield chunk


def _digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


class _Writer:
    """Appends encoded chunks, in row order, to the files of an evidence folder; bytes beyond `progress` are dropped."""

    def __init__(self, folder: Path, files: contextlib.ExitStack, progress: EvidenceProgress) -> None:
        self.progress = progress
        sizes, names = progress.file_bytes, layout.TEXT_COLUMNS + layout.TOKEN_COLUMNS
        self._columns = [ColumnWriter(folder, name, files, sizes) for name in names]
        self._digests = [(_digest(), _digest()) for _ in layout.TEXT_COLUMNS]
        self._hashes = open_for_append(folder / _UNSORTED_HASHES, files, sizes.get(_UNSORTED_HASHES, 0))
        if progress.passages:
            self._digest_again(folder)

    def write(self, chunk: EncodedChunk) -> None:
        written = [writer.write(column) for writer, column in zip(self._columns, chunk.columns, strict=True)]
        for digests, contents in zip(self._digests, written[: len(self._digests)], strict=True):
            for digest, content in zip(digests, contents, strict=True):
                digest.update(content)
        self._hashes.write(chunk.id_hashes.tobytes())
        self.progress.passages += len(chunk)

    def sync(self) -> dict[str, object]:
        """Flush the files to disk; returns the progress for the journal."""
        sizes = [column.sync() for column in self._columns] + [sync_file(self._hashes)]
        self.progress.file_bytes = {name: size for part in sizes for name, size in part.items()}
        return asdict(self.progress)

    def fingerprint(self, tokenizer: Vocabulary) -> str:
        """Fingerprint of the texts and the tokenizer, from which the rest follows."""
        parts = ["".join(digest.hexdigest() for digest in digests) for digests in self._digests]
        return hashlib.sha256("/".join([*parts, tokenizer.fingerprint]).encode()).hexdigest()[:16]

    def _digest_again(self, folder: Path) -> None:
        """Update the digests with the files of an earlier run."""
        for name, (values, offsets) in zip(layout.TEXT_COLUMNS, self._digests, strict=True):
            _digest_file(values, folder / values_file(name))
            _digest_file(offsets, folder / offsets_file(name), 8)  # the first offset was there before any chunk


def _digest_file(digest: hashlib.blake2b, path: Path, first_byte: int = 0) -> None:
    with open(path, "rb") as file:
        file.seek(first_byte)
        while block := file.read(1 << 22):
            digest.update(block)


def _finish(
    config: EvidenceBuilderConfig, partial: PartialFolder, tokenizer: Vocabulary, progress: EvidenceProgress
) -> None:
    """Write id table, vocabulary and manifest; an earlier attempt may have written some of them."""
    folder = partial.contents
    if (folder / _UNSORTED_HASHES).exists():  # else the table is whole
        _write_id_table(folder, config)
    partial.keep_only({layout.ID_HASHES, layout.ID_ROWS, *progress.file_bytes})
    write_vocabulary(folder, tokenizer)
    entries = {**token_entries(tokenizer), "num_passages": progress.passages, "inputs": list(config.input)}
    write_manifest(folder, layout.EvidenceStore, progress.fingerprint, entries)


def _write_id_table(folder: Path, config: EvidenceBuilderConfig) -> None:
    unsorted = folder / _UNSORTED_HASHES
    id_files = [folder / name(layout.TEXT_COLUMNS[0]) for name in (values_file, offsets_file)]
    ids = Ragged(np.memmap(id_files[0], np.uint8, "r"), np.memmap(id_files[1], np.int64, "r"))
    hashes = np.memmap(unsorted, np.uint64, "r")
    duplicate = sort_id_table(hashes, ids, folder / layout.ID_HASHES, folder / layout.ID_ROWS)
    if duplicate is not None:
        (first_path, first_line), (path, line) = _places(config, duplicate)
        problem = f"the id {ids[duplicate[0]].tobytes().decode()!r} is already used at {first_path}:{first_line}"
        raise DataError(path, problem, line=line, hint="Every passage needs an id of its own.")
    unsorted.unlink()


def _places(config: EvidenceBuilderConfig, rows: tuple[int, int]) -> list[tuple[str, int]]:
    """File and line of two rows, in ascending order; the inputs are read again, since an error follows."""
    lines = ((path, line) for path in config.input for line, _ in read_passages(path, config.columns))
    first = next(islice(lines, rows[0], None))
    return [first, next(islice(lines, rows[1] - rows[0] - 1, None))]
