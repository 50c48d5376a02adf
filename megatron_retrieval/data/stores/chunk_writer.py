"""Writes a chunk folder, document by document, and finds the groups at the end."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megatron_retrieval.data.stores import chunks as layout
from megatron_retrieval.data.stores.chunk_encoding import EncodedChunks
from megatron_retrieval.data.stores.column_folder import (
    ColumnWriter,
    OffsetsWriter,
    map_file,
    offsets_file,
    open_for_append,
    stored_dtype,
    sync_file,
    values_file,
    write_manifest,
)
from megatron_retrieval.data.stores.document_groups import GROUP_VERSION, NUM_BANDS, group_documents
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.data.stores.token_folder import token_entries, write_vocabulary
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils.files import file_fingerprint

#: needed to find the groups, and dropped then
_SIGNATURES = "signatures.u64"
#: files of plain numbers, and their types
_NUMBERS = {
    layout.SOURCES: "<i4",
    layout.SECTIONS: "<i4",
    layout.FIRST_BYTES: "<u4",
    layout.CHUNK_BYTES: "<u4",
    _SIGNATURES: "<u8",
}


@dataclass(kw_only=True)
class ChunkProgress:
    """Progress of a build, kept in the journal of the unfinished folder.

    Attributes:
        tasks: of the input, done.
        documents_read: in these tasks, including those without a token.
        documents: kept, sections counted each.
        rows, tokens, bytes: of these.
        bytes_left_out: of documents without a token.
        is_read: all documents are; only the end is left to do.
        file_bytes: valid size of each file.
    """

    tasks: int = 0
    documents_read: int = 0
    documents: int = 0
    rows: int = 0
    tokens: int = 0
    bytes: int = 0
    bytes_left_out: int = 0
    is_read: bool = False
    file_bytes: dict[str, int] = field(default_factory=dict)


class ChunkWriter:
    """Appends encoded documents to the files of a chunk folder, behind those that `progress` speaks of.

    Args:
        chunk_length: m, in tokens.
        files: closes the files.
    """

    def __init__(
        self, folder: Path, chunk_length: int, files: contextlib.ExitStack, progress: ChunkProgress | None = None
    ) -> None:
        self.progress = progress or ChunkProgress()
        self._chunk_length, sizes = chunk_length, self.progress.file_bytes
        self._tokens, self._titles = (
            ColumnWriter(folder, name, files, sizes) for name in (layout.TOKENS, layout.TITLES)
        )
        chunks = offsets_file(layout.CHUNKS)
        self._chunks = OffsetsWriter(folder / chunks, files, sizes.get(chunks, 0))
        self._numbers = {name: open_for_append(folder / name, files, sizes.get(name, 0)) for name in _NUMBERS}

    def write(self, encoded: EncodedChunks) -> None:
        """Append the documents of one task."""
        self._tokens.write(encoded.tokens)
        self._titles.write(encoded.titles)
        self._chunks.write(-(-encoded.tokens.lengths // self._chunk_length))
        columns = (encoded.sources, encoded.sections, encoded.first_bytes, encoded.chunk_bytes, encoded.signatures)
        for (name, file), values in zip(self._numbers.items(), columns, strict=True):
            file.write(values.astype(_NUMBERS[name]).tobytes())
        progress = self.progress
        progress.tasks += 1
        progress.documents_read += encoded.num_read
        progress.documents += len(encoded.sources)
        progress.rows += len(encoded.chunk_bytes)
        progress.tokens += len(encoded.tokens.values)
        progress.bytes += int(encoded.chunk_bytes.sum())
        progress.bytes_left_out += encoded.bytes_left_out

    def sync(self) -> dict[str, object]:
        """Flush the files to disk; returns the progress for the journal."""
        parts = [part.sync() for part in (self._tokens, self._titles, self._chunks)]
        parts += [sync_file(file) for file in self._numbers.values()]
        self.progress.file_bytes = {name: size for part in parts for name, size in part.items()}
        return asdict(self.progress)


def finish_chunks(
    folder: Path, vocabulary: Vocabulary, chunk_length: int, progress: ChunkProgress, inputs: Sequence[str]
) -> None:
    """Find the groups, and write what makes the folder a chunk store; an earlier attempt may have written some of
    it."""
    columns = sorted({*progress.file_bytes, layout.GROUPS} - {_SIGNATURES})
    if (folder / _SIGNATURES).exists():  # else the groups are whole
        _write_groups(folder, vocabulary, progress.documents)
        (folder / _SIGNATURES).unlink()
    write_vocabulary(folder, vocabulary)
    contents = file_fingerprint(*(folder / name for name in columns))
    description = f"{contents}/{vocabulary.fingerprint}/{chunk_length}/{GROUP_VERSION}"
    entries = {
        "num_documents": progress.documents,
        "num_rows": progress.rows,
        "num_tokens": progress.tokens,
        "num_bytes": progress.bytes,
        "num_bytes_without_token": progress.bytes_left_out,
        "chunk_length": chunk_length,
        "group_version": GROUP_VERSION,
        "inputs": list(inputs),
    }
    fingerprint = hashlib.sha256(description.encode()).hexdigest()[:16]
    write_manifest(folder, layout.ChunkStore, fingerprint, {**token_entries(vocabulary), **entries})


def _write_groups(folder: Path, vocabulary: Vocabulary, num_documents: int) -> None:
    def column(name: str, dtype: str) -> Ragged:
        return Ragged(map_file(folder / values_file(name), dtype), map_file(folder / offsets_file(name), "<i8"))

    titles = column(layout.TITLES, "u1")
    groups = group_documents(
        (titles[document].tobytes().decode() for document in range(num_documents)),
        map_file(folder / layout.SECTIONS, "<i4"),
        map_file(folder / _SIGNATURES, "<u8").reshape(-1, NUM_BANDS),
        column(layout.TOKENS, stored_dtype(vocabulary)),
    )
    with open(folder / layout.GROUPS, "wb") as file:
        file.write(groups.astype("<i4").tobytes())
        sync_file(file)
