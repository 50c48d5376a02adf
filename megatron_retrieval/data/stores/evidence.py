"""The evidence store: passages and their token ids, memory-mapped, addressed by rows 0 to N - 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_retrieval.data.layouts.sequences import TextFormatConfig, lay_out_passages
from megatron_retrieval.data.stores.id_table import IdTable
from megatron_retrieval.data.stores.ragged import Ragged, Rows
from megatron_retrieval.data.stores.token_folder import TokenFolder, token_format
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.types.search import NULL_ROW
from megatron_retrieval.types.tokens import TokenBatch

#: columns of UTF-8 text and columns of token ids; each is a file of values and a file of offsets
TEXT_COLUMNS = ("ids", "titles", "texts")
TOKEN_COLUMNS = ("title_tokens", "text_tokens")
ID_HASHES, ID_ROWS = "id_hashes.u64", "id_rows.i64"


class EvidenceStore(TokenFolder):
    """Opens what `build_evidence` wrote, in constant time and memory.

    Args:
        folder: the evidence folder.

    Raises:
        DataError: the folder is missing, incomplete or damaged.
    """

    format = token_format("evidence", "megatron-retrieval build evidence", "num_passages")

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._num_passages: int = self._manifest["num_passages"]
        dtype = self._manifest["token_dtype"]
        self._ids, self._titles, self._texts = (self._column(name, np.uint8, len(self)) for name in TEXT_COLUMNS)
        self._title_tokens, self._text_tokens = (self._column(name, dtype, len(self)) for name in TOKEN_COLUMNS)
        self._id_table = IdTable(self._map(ID_HASHES, "<u8"), self._map(ID_ROWS, "<i8"), self._ids)

    def __len__(self) -> int:
        return self._num_passages

    def passage(self, row: int) -> Passage:
        (row,) = self._checked([row])
        return Passage(*(column[row].tobytes().decode() for column in (self._ids, self._titles, self._texts)))

    def passages(self, rows: Sequence[int] | Rows) -> list[Passage]:
        return [self.passage(row) for row in rows]

    def tokens(self, rows: Sequence[int] | Rows, text_format: TextFormatConfig) -> TokenBatch:
        """The passages `rows` laid out for the encoder; `NULL_ROW` has an empty title and an empty text."""
        is_null = np.asarray(rows, np.int64) == NULL_ROW
        rows = self._checked(np.where(is_null, 0, rows))
        # where ids are joined as they are, those behind the end of a sequence are not read at all
        longest = text_format.retriever_seq_length if self.vocabulary.is_separable else np.iinfo(np.int64).max
        lengths = np.where(is_null, 0, longest)
        titles, texts = (column.take(rows, lengths) for column in (self._title_tokens, self._text_tokens))
        return lay_out_passages(titles, texts, self.vocabulary, text_format)

    def token_columns(self, rows: Sequence[int] | Rows) -> tuple[Ragged, Ragged]:
        """The token ids of the titles and of the texts of `rows`, whole and without special tokens."""
        rows = self._checked(rows)
        return self._title_tokens.take(rows), self._text_tokens.take(rows)

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """The row of each external id, -1 where the evidence has no such passage."""
        return self._id_table.rows_of(ids)

    def _checked(self, rows: Sequence[int] | Rows) -> Rows:
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows must lie in 0 to {len(self) - 1}")
        return rows
