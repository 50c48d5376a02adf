"""What an embedding of the evidence depends on, in one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.index.store.embedding_store import StorageDtype, StoreIdentity
from megatron_retrieval.retrieval.encode_batches import Encode, precision_of
from megatron_retrieval.types.tokens import TokenBatch


class TokenizedEvidence(Protocol):
    """Passages by row, 0 to N - 1, as token ids of the encoder's vocabulary."""

    @property
    def fingerprint(self) -> str:
        """Names the passages, their order and their tokenization."""
        ...

    def __len__(self) -> int: ...

    def tokens(self, rows: NDArray[np.int64], text_format: TextFormatConfig) -> TokenBatch:
        """The passages `rows` laid out for the encoder, in that order; on the CPU.

        Raises:
            IndexError: there is no such row.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EmbeddingJob:
    """Which passages are embedded, by which encoder, and how.

    Attributes:
        encode: [B, T] tokens to [B, D] vectors; of a model in evaluation mode.
        text_format: layout of the passages.
        encoder_fingerprint: names the weights and the text layout that `encode` stands for; empty where vectors are not
            kept.
        embedding_dtype: type in which vectors are stored.
        micro_batch_size: passages encoded at once by each copy of the model.
        embedding_size: numbers that `encode` cuts vectors to; 0: it gives whole ones.
    """

    evidence: TokenizedEvidence
    encode: Encode
    text_format: TextFormatConfig
    encoder_fingerprint: str = ""
    embedding_dtype: StorageDtype = "float16"
    micro_batch_size: int = 128
    embedding_size: int = 0

    @property
    def identity(self) -> StoreIdentity:
        """What the vectors will be."""
        return StoreIdentity(
            self.evidence.fingerprint,
            self.encoder_fingerprint,
            len(self.evidence),
            self.embedding_dtype,
            precision=precision_of(self.encode),
            embedding_size=self.embedding_size,
        )

    def tokens(self, rows: range) -> TokenBatch:
        """The passages `rows` laid out for the encoder."""
        return self.evidence.tokens(np.asarray(rows, np.int64), self.text_format)
