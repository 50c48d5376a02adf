"""What readers and generation ask of an encoder-decoder, whichever it is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from megatron_retrieval.models.score_attention import ScoreForm
from megatron_retrieval.models.seq2seq_attention import DecoderCache
from megatron_retrieval.types.tokens import TokenBatch


class Encoder(Protocol):
    """Token ids to hidden states."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[B, T] ids -> [B, T, D]; states at padding mean nothing."""
        ...


class Decoder(Protocol):
    """Tokens so far and encoder states to hidden states that tell the next tokens.

    Attributes:
        head_width: of its attention.
    """

    @property
    def head_width(self) -> int: ...

    def __call__(
        self,
        ids: Tensor,
        states: Tensor | None,
        key_bias: Tensor | None = None,
        cache: DecoderCache | None = None,
        form: ScoreForm = "mask",
    ) -> Tensor:
        """[B * n, L] ids, n sequences for each of B sources -> [B * n, L, D]; see `T5Decoder`."""
        ...

    def new_cache(self) -> DecoderCache:
        """An empty cache for generation."""
        ...


class EncoderDecoder(Protocol):
    """An encoder and a decoder over one vocabulary.

    Attributes:
        start_id: what every decoded sequence begins with.
        end_id: what every answer ends with.
    """

    @property
    def start_id(self) -> int: ...

    @property
    def end_id(self) -> int: ...

    @property
    def encoder(self) -> Encoder: ...

    @property
    def decoder(self) -> Decoder: ...

    def logits(self, states: Tensor) -> Tensor:
        """[..., D] decoder states -> [..., V / tensor-parallel size] float32, this rank's part of the vocabulary;
        entries without a token are the lowest number."""
        ...
