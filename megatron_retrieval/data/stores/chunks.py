"""The chunk store: documents as token ids, cut into chunks that are addressed by rows 0 to N - 1, memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.data.stores.column_folder import offsets_file
from megatron_retrieval.data.stores.ragged import Ragged, Rows
from megatron_retrieval.data.stores.token_folder import TokenFolder, token_format

#: columns with a row for each document: token ids, and UTF-8 of the title
TOKENS, TITLES = "tokens", "titles"
#: offsets alone: the chunks of each document
CHUNKS = "chunks"
#: [num_rows] and [num_documents], see `ChunkStore`
CHUNK_BYTES, FIRST_BYTES, GROUPS = "chunk_bytes.u32", "first_bytes.u32", "groups.i32"
SOURCES, SECTIONS = "sources.i32", "sections.i32"
TOOL = "megatron-retrieval build chunks"

SectionChoice = Literal["all", "even", "odd"]
Mask = NDArray[np.bool_]


class ChunkStore(TokenFolder):
    """Opens what `build_chunks` wrote, in constant time and memory.

    A document is cut into chunks of m tokens from its first token on; its last chunk may be shorter. Row and number of
    a chunk are the same thing; the chunks of a document are adjacent (Borgeaud et al. 2022, arXiv 2112.04426, section
    2.1).

    Args:
        folder: of the chunks.

    Attributes:
        chunk_length: m, in tokens.
        tokens: token ids of each document, none of them empty.
        documents: [num_documents + 1] document d is the rows documents[d] to documents[d + 1].
        groups: [num_documents] documents with equal numbers must not serve one another.
        sources: [num_documents] the number of the input file, in the order given.
        sections: [num_documents] 0 where a text begins, then one more for each piece of it that is a document.
        chunk_bytes: [num_rows] UTF-8 bytes of the text from the first token of a chunk to that of the next one; those
            of a document add up to its bytes.
        first_bytes: [num_documents] those up to the document's second token.

    Raises:
        DataError: the folder is missing, incomplete or damaged.
    """

    format = token_format(
        "chunks", TOOL, "num_documents", "num_rows", "num_tokens", "num_bytes", "chunk_length", "group_version"
    )

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.num_documents: int = self._manifest["num_documents"]
        self.num_tokens: int = self._manifest["num_tokens"]
        self.num_bytes: int = self._manifest["num_bytes"]
        self.chunk_length: int = self._manifest["chunk_length"]
        self.tokens: Ragged = self._column(TOKENS, self._manifest["token_dtype"], self.num_documents)
        self._titles = self._column(TITLES, np.uint8, self.num_documents)
        self.documents: Rows = self._map(offsets_file(CHUNKS), "<i8")
        self._check_offsets(CHUNKS, self.documents, self.num_documents, len(self))
        self.groups, self.sources, self.sections = (self._map(name, "<i4") for name in (GROUPS, SOURCES, SECTIONS))
        self.chunk_bytes, self.first_bytes = (self._map(name, "<u4") for name in (CHUNK_BYTES, FIRST_BYTES))

    def __len__(self) -> int:
        return int(self._manifest["num_rows"])

    def title(self, document: int) -> str:
        return self._titles[document].tobytes().decode()

    def document_of(self, rows: Rows) -> Rows:
        """The document that each row is of."""
        return np.searchsorted(self.documents, rows, side="right") - 1

    def chunk_tokens(self, rows: Rows) -> tuple[Rows, Mask]:
        """The tokens of chunks: [..., m] int64, 0 behind the last one, and [..., m] where there are some."""
        return self._tokens(rows, self.chunk_length)

    def values(self, rows: Rows) -> tuple[Rows, Mask]:
        """What retrieving a row gives: its chunk and the one after it in the same document.

        Args:
            rows: [...] int64; -1 stands for none.

        Returns:
            ids [..., 2m] int64, 0 where there is no token, and [..., 2m] bool where there is one.

        Raises:
            IndexError: there is no such row.
        """
        return self._tokens(rows, 2 * self.chunk_length)

    def goes_on(self, rows: Rows) -> Mask:
        """Whether the next row is of the same document (the chunk is full, then)."""
        rows = np.asarray(rows, np.int64)
        is_row = rows >= 0
        document = self.document_of(np.where(is_row, rows, 0))
        return is_row & (rows + 1 < self.documents[document + 1])

    def in_sections(self, choice: SectionChoice) -> Mask:
        """[num_documents] the documents that are sections of that parity, and texts of a single one."""
        if choice == "all":
            return np.ones(self.num_documents, np.bool_)
        begins = np.r_[self.sections == 0, True]
        is_single = begins[:-1] & begins[1:]
        parity: Mask = self.sections % 2 == (choice == "odd")
        return is_single | parity

    def _tokens(self, rows: Rows, width: int) -> tuple[Rows, Mask]:
        rows = np.asarray(rows, np.int64)
        if rows.size and not -1 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows must lie in 0 to {len(self) - 1}, or be -1")
        is_row = rows >= 0
        rows = np.where(is_row, rows, 0)
        document = self.document_of(rows)
        start = self.tokens.offsets[document] + (rows - self.documents[document]) * self.chunk_length
        places = start[..., None] + np.arange(width)
        mask = (places < self.tokens.offsets[document + 1][..., None]) & is_row[..., None]
        ids = self.tokens.values[np.where(mask, places, 0)].astype(np.int64)
        return np.where(mask, ids, 0), mask
