"""Chunks as an encoder reads them, to make the keys that are searched and those that are searched for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from megatron_retrieval.data.layouts.sequences import TextFormatConfig, lay_out_passages
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.ragged import Ragged, Rows, tokenize
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.tokens import TokenBatch


class ChunkPassages:
    """The chunks of a store in an encoder's vocabulary, without titles: evidence that can be embedded.

    A key is that of the chunk alone, not of its continuation (Borgeaud et al. 2022, arXiv 2112.04426, section 2.3).
    """

    def __init__(self, chunks: ChunkStore, vocabulary: Vocabulary) -> None:
        self._chunks, self._vocabulary = chunks, vocabulary

    @property
    def fingerprint(self) -> str:
        return self._chunks.fingerprint

    def __len__(self) -> int:
        return len(self._chunks)

    def tokens(self, rows: Rows, text_format: TextFormatConfig) -> TokenBatch:
        """See `TokenizedEvidence`."""
        ids, mask = self._chunks.chunk_tokens(rows)
        chunks = [values[is_token].tolist() for values, is_token in zip(ids, mask, strict=True)]
        return key_tokens(chunks, self._chunks.vocabulary, self._vocabulary, text_format)


def key_tokens(
    chunks: Sequence[Sequence[int]], written_in: Vocabulary, read_in: Vocabulary, text_format: TextFormatConfig
) -> TokenBatch:
    """The input of the encoder whose vector is a chunk's key, for chunks of a store and for those just generated.

    Args:
        chunks: token ids of the language model; what is cut in the middle of a character is replaced (U+FFFD).
        written_in: the language model's vocabulary.
        read_in: the encoder's.
        text_format: the encoder's; the form without a title is used.
    """
    texts = tokenize(read_in, written_in.decode(chunks))
    titles = Ragged(texts.values[:0], np.zeros(len(texts) + 1, np.int64))
    return lay_out_passages(titles, texts, read_in, dataclasses.replace(text_format, passage_format="title-text"))
