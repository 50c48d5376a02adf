"""The interface of encoder-decoders that readers and generation use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor, nn

from megatron_retrieval.models.layer_inputs import TokenCache
from megatron_retrieval.models.memory import Memory
from megatron_retrieval.types.tokens import TokenBatch


class Decoder(Protocol):
    """Previous tokens and a memory to hidden states that predict the next tokens.

    Attributes:
        head_width: width of an attention head.
    """

    @property
    def head_width(self) -> int: ...

    def __call__(self, ids: Tensor, memory: Memory, cache: TokenCache | None = None) -> Tensor:
        """Decode.

        Args:
            ids: [R, L] int64, the tokens of R sequences; only those that `cache` has not seen. Sequences may be padded
                on the right: earlier tokens do not see later ones.
            memory: what cross-attention reads; `EncodedMemory` takes R = B * n, n sequences for each of its B sources,
                in consecutive rows.
            cache: of the previous tokens; those of `ids` are added.

        Returns:
            [R, L, D]
        """
        ...

    def modules(self) -> Iterator[nn.Module]:
        """All modules, of any depth."""
        ...


class EncoderDecoder(Protocol):
    """An encoder and a decoder over one vocabulary.

    Attributes:
        start_id: first token of every decoded sequence.
        end_id: last token of every answer.
    """

    @property
    def start_id(self) -> int: ...

    @property
    def end_id(self) -> int: ...

    @property
    def encoder(self) -> Callable[[TokenBatch], Tensor]:
        """[B, T] ids -> [B, T, D]; states at padding are undefined."""
        ...

    @property
    def decoder(self) -> Decoder: ...

    def logits(self, states: Tensor) -> Tensor:
        """[..., D] decoder states -> [..., V / tensor-parallel size] float32, this rank's part of the vocabulary;
        entries without a token are the lowest number."""
        ...
