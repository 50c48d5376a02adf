"""What a RETRO takes: chunks, keys, the nearest neighbours of every chunk, and a step of its training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from megatron_retrieval.applications.plan.retro_costs import step_activation_bytes, step_bytes
from megatron_retrieval.applications.plan.units import duration, size
from megatron_retrieval.config.checks import Checked, NonNegativeFloat, PositiveFloat, PositiveInt
from megatron_retrieval.models.causal_config import CausalShape
from megatron_retrieval.models.retro_config import RetroShape

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
    """A RETRO: its database, and a step of its training."""

    retro_tokens: NonNegativeFloat = 0.0
    """Tokens of the texts in which a RETRO finds neighbours, and of which it learns; 0: plan none."""
    retro_document_tokens: PositiveFloat = 1000.0
    """Tokens of a document, on average."""
    retro_chunk_length: PositiveInt = 64
    """Tokens of a chunk."""
    retro_query_num_neighbors_save: PositiveInt = 20
    """Neighbours kept of each chunk."""
    retro_base: Literal["none", "smollm2-135m"] = "smollm2-135m"
    """Causal language model that is frozen and learns to read neighbours, a text in each forward pass; none: plan no
    training."""
    retro_seq_length: PositiveInt = 2048
    """Tokens of such a text."""
    retro_num_neighbors: PositiveInt = 2
    """Neighbours that it reads for a chunk."""

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
        state_bytes: weights, gradients and moments of a process that trains; 0 without training, as are activations.
    """

    num_chunks: int
    chunk_bytes: float
    key_bytes: float
    neighbor_bytes: float
    embed_seconds: float
    join_seconds: float
    state_bytes: int
    activation_bytes: int


def retro_estimate(
    config: RetroPlanConfig,
    base: object,
    *,
    half: bool,
    key_bytes: int,
    tokens_per_second: float,
    comparisons_per_second: float,
) -> RetroEstimate:
    """What a RETRO takes.

    Args:
        base: the shape of `retro_base`; None: no training is planned.
        half: it is trained in half precision.
        key_bytes: of a stored vector.
        tokens_per_second: that all processes encode.
        comparisons_per_second: of a vector with a vector, of all processes.
    """
    rows, documents, kept = config.num_chunks, config.num_documents, config.retro_query_num_neighbors_save
    row_bytes, state, activations = 4 if rows < _LARGE_ROWS else 8, 0, 0
    if isinstance(base, CausalShape):
        own = {field.name: getattr(base, field.name) for field in dataclasses.fields(CausalShape)}
        shape, num_tokens = RetroShape(**own, retro_chunk_length=config.retro_chunk_length), config.retro_seq_length
        state = step_bytes(shape, is_frozen=True, half=half)
        activations = step_activation_bytes(shape, num_tokens, config.retro_num_neighbors, is_frozen=True, half=half)
    return RetroEstimate(
        num_chunks=rows,
        chunk_bytes=2 * config.retro_tokens + _CHUNK_BYTES * rows + _DOCUMENT_BYTES * documents,
        key_bytes=float(key_bytes * rows),
        neighbor_bytes=float(rows * kept * (row_bytes + _DISTANCE_BYTES)),
        embed_seconds=rows * config.retro_chunk_length * _KEY_TOKENS / tokens_per_second,
        join_seconds=rows * rows / comparisons_per_second,
        state_bytes=state,
        activation_bytes=activations,
    )


def retro_rows(config: RetroPlanConfig, found: RetroEstimate, ranks: str) -> list[tuple[str, str, str]]:
    """(what, how much, where) for a table.

    Args:
        ranks: how many processes there are, and of which kind.
    """
    rows = [
        (f"RETRO: {found.num_chunks:,} chunks", size(found.chunk_bytes), "disk"),
        ("their keys", size(found.key_bytes), "disk, and memory of all processes together"),
        (f"{config.retro_query_num_neighbors_save} neighbours of each", size(found.neighbor_bytes), "disk"),
        ("embedding them", duration(found.embed_seconds), ranks),
        ("finding all neighbours, exactly", duration(found.join_seconds), ranks),
    ]
    if found.state_bytes:
        of_text = f"{config.retro_seq_length:,} tokens, {config.retro_num_neighbors} neighbours a chunk: activations"
        rows += [
            (f"training beside a frozen {config.retro_base}", size(found.state_bytes), "memory of each process"),
            (f"a text of {of_text}", size(found.activation_bytes), "memory of each process"),
        ]
    return rows
