"""What the database of a RETRO takes: chunks, keys, and the nearest neighbours of every chunk."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_retrieval.config.checks import Checked, NonNegativeFloat, PositiveFloat, PositiveInt

#: of a chunk beside its tokens: bytes of text; of a document: offsets of tokens, titles and chunks, group, source,
#: section, bytes of the first token
_CHUNK_BYTES, _DOCUMENT_BYTES = 4, 3 * 8 + 4 * 4
#: of a neighbour beside its row: distance and overlap
_DISTANCE_BYTES = 3
#: WordPiece tokens of a chunk for each of its own, with the special ones
_KEY_TOKENS = 1.17
#: rows of a database from which row numbers take eight bytes
_LARGE_ROWS = 1 << 31


@dataclass(kw_only=True, frozen=True)
class RetroPlanConfig(Checked):
    """The database of a RETRO."""

    retro_tokens: NonNegativeFloat = 0.0
    """Tokens of the texts in which a RETRO finds neighbours, and of which it learns; 0: plan none."""
    retro_document_tokens: PositiveFloat = 1000.0
    """Tokens of a document, on average."""
    retro_chunk_length: PositiveInt = 64
    """Tokens of a chunk."""
    retro_query_num_neighbors_save: PositiveInt = 20
    """Neighbours kept of each chunk."""

    @property
    def num_documents(self) -> float:
        """Documents."""
        return self.retro_tokens / self.retro_document_tokens

    @property
    def num_chunks(self) -> int:
        """Chunks; the last one of a document is half full on average."""
        return round(self.retro_tokens / self.retro_chunk_length + self.num_documents / 2)


@dataclass(frozen=True)
class RetroEstimate:
    """Bytes and seconds.

    Attributes:
        join_seconds: of exact search for all chunks among all.
    """

    num_chunks: int
    chunk_bytes: float
    key_bytes: float
    neighbor_bytes: float
    embed_seconds: float
    join_seconds: float


def retro_estimate(
    config: RetroPlanConfig,
    *,
    key_bytes: int,
    tokens_per_second: float,
    comparisons_per_second: float,
) -> RetroEstimate:
    """The database of a RETRO.

    Args:
        key_bytes: of a stored vector.
        tokens_per_second: that all processes encode.
        comparisons_per_second: of a vector with a vector, of all processes.
    """
    rows, documents, kept = config.num_chunks, config.num_documents, config.retro_query_num_neighbors_save
    row_bytes = 4 if rows < _LARGE_ROWS else 8
    return RetroEstimate(
        num_chunks=rows,
        chunk_bytes=2 * config.retro_tokens + _CHUNK_BYTES * rows + _DOCUMENT_BYTES * documents,
        key_bytes=float(key_bytes * rows),
        neighbor_bytes=float(rows * kept * (row_bytes + _DISTANCE_BYTES)),
        embed_seconds=rows * config.retro_chunk_length * _KEY_TOKENS / tokens_per_second,
        join_seconds=rows * rows / comparisons_per_second,
    )
