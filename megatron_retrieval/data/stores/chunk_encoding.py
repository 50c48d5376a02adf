"""Documents to token ids and bytes of chunks: the work of a worker process of the chunk builder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from megatron_retrieval.data.files.sentences import Document
from megatron_retrieval.data.stores.column_folder import EncodedColumn
from megatron_retrieval.data.stores.document_groups import Hashes, signature
from megatron_retrieval.data.stores.ragged import Array, Rows, to_offsets, token_dtype
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.tokenizers.vocabulary import Vocabulary


class ChunkedDocument(NamedTuple):
    """A document of the chunk store, or a section of a longer one.

    Attributes:
        source: number of the input file.
        section: from 1 where it continues the document before it.
        tokens: [T] ids, at least one.
        starts: [T + 1] byte of the text at which each token begins; the first is 0, the last the number of bytes.
    """

    title: str
    source: int
    section: int
    tokens: Array
    starts: Rows


@dataclass(frozen=True)
class EncodedChunks:
    """Consecutive documents as the chunk store keeps them, see `ChunkStore`.

    Attributes:
        signatures: [documents, NUM_BANDS], by which near duplicates are found.
        num_read: documents that this comes from.
        bytes_left_out: UTF-8 bytes of those without a token.
    """

    tokens: EncodedColumn
    titles: EncodedColumn
    sources: Rows
    sections: Rows
    first_bytes: Rows
    chunk_bytes: Rows
    signatures: Hashes
    num_read: int
    bytes_left_out: int


class ChunkEncoder:
    """Tokenizes whole documents and measures their chunks.

    Args:
        chunk_length: m, in tokens.
        section_length: in tokens, a multiple of m; documents are cut into pieces of it. None: they stay whole.
    """

    def __init__(self, vocabulary: Vocabulary, chunk_length: int, section_length: int | None = None) -> None:
        self._vocabulary, self._chunk_length, self._section_length = vocabulary, chunk_length, section_length
        self._dtype = token_dtype(vocabulary.vocab_size)
        self._token_bytes = vocabulary.num_bytes() if isinstance(vocabulary, ByteBpeTokenizer) else None

    def encode(self, documents: Sequence[tuple[int, Document]]) -> EncodedChunks:
        """Those without a token are left out.

        Args:
            documents: number of the input file, and document of one paragraph.
        """
        texts = [document.paragraphs[0] for _, document in documents]
        encoded = self._vocabulary.encode(texts)
        chunked: list[ChunkedDocument] = []
        left_out = 0
        for (source, document), text, ids in zip(documents, texts, encoded, strict=True):
            starts = self._starts(text, ids)
            left_out += 0 if ids else int(starts[-1])
            whole = ChunkedDocument(
                document.title, source, int(document.is_continuation), np.asarray(ids, self._dtype), starts
            )
            chunked += self._sections(whole)
        return columns_of(chunked, self._chunk_length, len(documents), left_out)

    def _sections(self, whole: ChunkedDocument) -> Iterator[ChunkedDocument]:
        length = self._section_length or max(len(whole.tokens), 1)
        for number, start in enumerate(range(0, len(whole.tokens), length)):
            end = min(start + length, len(whole.tokens))
            starts = whole.starts[start : end + 1] - whole.starts[start]
            section = whole.section + number
            yield ChunkedDocument(whole.title, whole.source, section, whole.tokens[start:end], starts)

    def _starts(self, text: str, ids: Sequence[int]) -> Rows:
        """[T + 1] see `ChunkedDocument`. Text without a token (spaces, for some vocabularies) is of the token before
        it; a character of several tokens, where the vocabulary does not know its bytes, is of the last of them."""
        num_bytes = len(text.encode())
        if self._token_bytes is not None:
            starts = to_offsets(self._token_bytes[np.asarray(ids, np.int64)])
            if starts[-1] == num_bytes:
                return starts
        # a vocabulary that changes the text before it cuts it
        characters = [start for start, _ in self._vocabulary.offsets(text)] if ids else []
        starts = np.r_[byte_offsets(text, characters), num_bytes]
        starts[0] = 0 if ids else num_bytes
        return starts


def encode_chunks(encoder: ChunkEncoder, documents: Sequence[tuple[int, Document]]) -> EncodedChunks:
    """See `ChunkEncoder.encode`."""
    return encoder.encode(documents)


def columns_of(
    documents: Sequence[ChunkedDocument], chunk_length: int, num_read: int, bytes_left_out: int = 0
) -> EncodedChunks:
    """The columns of some documents; for arguments see `EncodedChunks` and `ChunkEncoder`."""
    titles = [document.title.encode() for document in documents]
    # the last token's end closes the last chunk
    bounds = [np.r_[document.starts[:-1:chunk_length], document.starts[-1]] for document in documents]
    return EncodedChunks(
        EncodedColumn(
            np.concatenate([document.tokens for document in documents]) if documents else np.empty(0, np.uint16),
            _numbers(len(document.tokens) for document in documents),
        ),
        EncodedColumn(np.frombuffer(b"".join(titles), np.uint8), _numbers(map(len, titles))),
        _numbers(document.source for document in documents),
        _numbers(document.section for document in documents),
        _numbers(int(document.starts[1]) for document in documents),
        np.concatenate([np.diff(bound) for bound in bounds]) if bounds else _numbers([]),
        np.array([signature(document.tokens) for document in documents], np.uint64),
        num_read,
        bytes_left_out,
    )


def byte_offsets(text: str, characters: Sequence[int]) -> Rows:
    """Where in the UTF-8 of a text each of these characters begins."""
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    lengths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return to_offsets(lengths)[np.asarray(characters, np.int64)]


def _numbers(values: Iterable[int]) -> Rows:
    return np.fromiter(values, np.int64)
