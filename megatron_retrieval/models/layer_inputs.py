"""What the parts of a layer read besides the hidden states."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_retrieval.models.memory import KeysAndValues, Memory


class TokenCache:
    """The keys and values of the tokens that a decoder has seen, by attention module.

    An empty one goes into the first call of a decoder; each call adds the tokens that it gets.
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, KeysAndValues] = {}

    @property
    def num_tokens(self) -> int:
        """Tokens seen so far, the same number in every sequence."""
        return next((key.size(0) for key, _ in self._seen.values()), 0)

    def extend(self, attention: Hashable, key: Tensor, value: Tensor) -> KeysAndValues:
        """Add those of new tokens, [L, R, heads of this rank, head width] each; returns those of all tokens."""
        if attention in self._seen:
            seen_key, seen_value = self._seen[attention]
            key, value = torch.cat([seen_key, key]), torch.cat([seen_value, value])
        self._seen[attention] = key, value
        return key, value

    def select(self, rows: Tensor | None) -> None:
        """Go on with the sequences `rows` [R] (beams that survive, in their new order); None: all as they are."""
        if rows is None:
            return
        for attention, (key, value) in self._seen.items():
            self._seen[attention] = key.index_select(1, rows), value.index_select(1, rows)


@dataclass(frozen=True)
class LayerInputs:
    """What the parts of a layer read besides the hidden states, the same in all layers of a stack.

    Attributes:
        bias: broadcastable to [R, heads of this rank, L, tokens seen + L], added to the logits of self-attention.
        memory: what cross-attention reads.
        cache: where the L tokens are not the first; every self-attention adds them.
    """

    bias: Tensor | None = None
    memory: Memory | None = None
    cache: TokenCache | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All that gradients may flow to."""
        return self.bias, *(() if self.memory is None else self.memory.tensors)

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> LayerInputs:
        """The same inputs over other tensors, which stand in the order of `tensors`."""
        bias, *others = tensors
        return replace(self, bias=bias, memory=None if self.memory is None else self.memory.with_tensors(others))
