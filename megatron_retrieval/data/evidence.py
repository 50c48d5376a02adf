"""The evidence store: passages and their token ids, memory-mapped, addressed by rows 0 to N - 1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from megatron_retrieval.data.formatting import PassageFormat, format_passages
from megatron_retrieval.data.id_table import IdTable
from megatron_retrieval.data.ragged import Array, Ragged, Rows
from megatron_retrieval.errors import DataError, MismatchError
from megatron_retrieval.tokenizers import SpecialIds, WordPieceTokenizer
from megatron_retrieval.types import Passage, TokenBatch
from megatron_retrieval.utils.files import read_json

FORMAT_VERSION = 1
MANIFEST, VOCABULARY = "manifest.json", "vocab.txt"
#: columns of UTF-8 text and columns of token ids; each is a file of values and a file of offsets
TEXT_COLUMNS = ("ids", "titles", "texts")
TOKEN_COLUMNS = ("title_tokens", "text_tokens")
ID_HASHES, ID_ROWS = "id_hashes.u64", "id_rows.i64"
_HINT = "Build it anew with tools/build_evidence.py."


def values_file(column: str) -> str:
    return f"{column}.values"


def offsets_file(column: str) -> str:
    return f"{column}.offsets"


class EvidenceStore:
    """Opens what `build_evidence` wrote, in constant time and memory.

    Args:
        folder: the evidence folder.

    Raises:
        DataError: the folder is missing, incomplete or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = _read_manifest(self.folder)
        self._num_passages: int = manifest["num_passages"]
        #: names the contents: passages, their order and their tokenization
        self.fingerprint: str = manifest["fingerprint"]
        self._tokenizer: dict[str, Any] = manifest["tokenizer"]
        self.special = SpecialIds(**self._tokenizer["special"])
        self._ids, self._titles, self._texts = (self._column(name, np.uint8) for name in TEXT_COLUMNS)
        self._title_tokens, self._text_tokens = (self._column(name, manifest["token_dtype"]) for name in TOKEN_COLUMNS)
        self._id_table = IdTable(self._map(ID_HASHES, "<u8"), self._map(ID_ROWS, "<i8"), self._ids)

    def __len__(self) -> int:
        return self._num_passages

    def __reduce__(self) -> tuple[type[EvidenceStore], tuple[Path]]:
        # another process maps the same files instead of receiving a copy
        return EvidenceStore, (self.folder,)

    @cached_property
    def tokenizer(self) -> WordPieceTokenizer:
        """The tokenizer that the token ids come from."""
        tokenizer = WordPieceTokenizer(self.folder / VOCABULARY, self._tokenizer["lower_case"])
        if tokenizer.fingerprint != self._tokenizer["fingerprint"]:
            raise DataError(self.folder / VOCABULARY, "not the vocabulary that the evidence was built with", hint=_HINT)
        return tokenizer

    def require_vocabulary(self, vocabulary: WordPieceTokenizer, owner: str) -> None:
        """Refuse an encoder whose token ids mean other words.

        Args:
            owner: whose vocabulary it is, for the message.

        Raises:
            MismatchError: the evidence was tokenized with another vocabulary.
        """
        if vocabulary.fingerprint != self.tokenizer.fingerprint:
            raise MismatchError(
                f"The evidence in {self.folder} was tokenized with vocabulary {self.tokenizer.fingerprint}, but "
                f"{owner} has vocabulary {vocabulary.fingerprint}; build the evidence with --vocab-file "
                f"{vocabulary.vocab_file}."
            )

    def passage(self, row: int) -> Passage:
        (row,) = self._checked([row])
        return Passage(*(column[row].tobytes().decode() for column in (self._ids, self._titles, self._texts)))

    def passages(self, rows: Sequence[int] | Rows) -> list[Passage]:
        return [self.passage(row) for row in rows]

    def tokens(self, rows: Sequence[int] | Rows, seq_length: int, passage_format: PassageFormat) -> TokenBatch:
        """The passages `rows` laid out for the encoder, at most `seq_length` tokens each."""
        rows = self._checked(rows)
        titles, texts = (column.take(rows, seq_length) for column in (self._title_tokens, self._text_tokens))
        return format_passages(titles, texts, self.special, seq_length=seq_length, passage_format=passage_format)

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """The row of each external id, -1 where the evidence has no such passage."""
        return self._id_table.rows_of(ids)

    def _checked(self, rows: Sequence[int] | Rows) -> Rows:
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows must lie in 0 to {len(self) - 1}")
        return rows

    def _column(self, name: str, dtype: DTypeLike) -> Ragged:
        column = Ragged(self._map(values_file(name), dtype), self._map(offsets_file(name), "<i8"))
        if len(column) != len(self) or column.offsets[-1] != len(column.values):
            raise DataError(self.folder / offsets_file(name), "the offsets do not fit the values", hint=_HINT)
        return column

    def _map(self, name: str, dtype: DTypeLike) -> Any:
        path = self.folder / name
        if not path.stat().st_size:
            return np.empty(0, dtype)
        mapped: Array = np.memmap(path, np.dtype(dtype), "r")
        return np.asarray(mapped)  # a plain view of the map: slicing it is several times faster


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(folder, f"no evidence folder ({MANIFEST} is missing)", hint=_HINT)
    manifest = read_json(path)
    keys = {"format_version", "num_passages", "fingerprint", "tokenizer", "token_dtype", "file_bytes"}
    if not isinstance(manifest, dict) or not keys <= manifest.keys():
        raise DataError(path, "damaged manifest", hint=_HINT)
    if manifest["format_version"] != FORMAT_VERSION:
        problem = f"format {manifest['format_version']}, but this program reads format {FORMAT_VERSION}"
        raise DataError(path, problem, hint=_HINT)
    for name, size in manifest["file_bytes"].items():
        file = folder / name
        if not file.is_file():
            raise DataError(file, "is missing from the evidence folder", hint=_HINT)
        if file.stat().st_size != size:
            raise DataError(file, f"has {file.stat().st_size} bytes instead of {size}", hint=_HINT)
    return manifest
