"""Passages to encoded columns: the work of a worker process of the evidence builder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_retrieval.data.stores.column_folder import EncodedColumn
from megatron_retrieval.data.stores.id_table import Hashes, hash_ids
from megatron_retrieval.data.stores.ragged import Rows, tokenize
from megatron_retrieval.tokenizers.vocabulary import Vocabulary

#: (id, title, text): plain strings cross between processes faster than objects
RawPassage = tuple[str, str, str]


@dataclass(frozen=True)
class EncodedChunk:
    """Consecutive rows of the evidence.

    Attributes:
        columns: ids, titles, texts, title tokens, text tokens, as the store orders them.
        id_hashes: one for each row.
    """

    columns: tuple[EncodedColumn, ...]
    id_hashes: Hashes

    def __len__(self) -> int:
        return len(self.id_hashes)


def encode_chunk(tokenizer: Vocabulary, passages: Sequence[RawPassage]) -> EncodedChunk:
    """Encode and tokenize the passages."""
    fields = [list(field) for field in zip(*passages, strict=True)]
    encoded = [[text.encode() for text in field] for field in fields]
    columns = [EncodedColumn(np.frombuffer(b"".join(field), np.uint8), _lengths(field)) for field in encoded]
    for field in fields[1:]:
        tokens = tokenize(tokenizer, field)
        columns.append(EncodedColumn(tokens.values, tokens.lengths))
    return EncodedChunk(tuple(columns), hash_ids(encoded[0]))


def _lengths(field: Sequence[bytes]) -> Rows:
    return np.fromiter(map(len, field), np.int64, len(field))
