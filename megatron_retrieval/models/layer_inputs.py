"""Inputs of a layer's parts besides the hidden states: bias, memory, cache."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_retrieval.models.memory import KeysAndValues, ReadMemory
from megatron_retrieval.models.packing import Packing
from megatron_retrieval.models.prompt import Prompts
from megatron_retrieval.models.rotary import Rotary


class TokenCache:
    """Keys and values of the tokens that a decoder has read, by self-attention module.

    The first call of a decoder takes an empty one; every call adds its tokens.
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, KeysAndValues] = {}

    @property
    def computed(self) -> Mapping[Hashable, KeysAndValues]:
        """Keys and values by self-attention module, [L, R, heads of this rank, head width] each."""
        return self._seen

    @property
    def num_tokens(self) -> int:
        """Tokens read so far, the same number in every sequence."""
        return next((key.size(0) for key, _ in self._seen.values()), 0)

    def extend(self, attention: Hashable, key: Tensor, value: Tensor) -> KeysAndValues:
        """Add keys and values of new tokens, [L, R, heads of this rank, head width]; returns those of all tokens."""
        if attention in self._seen:
            seen_key, seen_value = self._seen[attention]
            key, value = torch.cat([seen_key, key]), torch.cat([seen_value, value])
        self._seen[attention] = key, value
        return key, value

    def select(self, rows: Tensor | None) -> None:
        """Keep the sequences `rows` [R] (surviving beams, in their new order); None: all, in their order."""
        if rows is None:
            return
        for attention, (key, value) in self._seen.items():
            self._seen[attention] = key.index_select(1, rows), value.index_select(1, rows)


@dataclass(frozen=True)
class LayerInputs:
    """Inputs of a layer's parts besides the hidden states, the same for all layers of a stack.

    Attributes:
        bias: broadcastable to [R, heads of this rank, L, cached tokens + L], added to the logits of self-attention.
        memory: read by cross-attention.
        cache: previous tokens in generation; every self-attention adds the L new ones.
        rotary: angles that queries and keys of self-attention are turned by; None: they are not.
        packing: the states are [N, 1, D] tokens of texts without padding, which self-attention pads; None: they are
            padded.
        prompts: what the sequences continue, seen by self-attention before the tokens of the cache.
        is_causal: in the place of a bias; tokens see those before them alone.
        num_read: positions, from the first on, whose states are wanted of a layer; the others are its keys and values
            alone. None: all. Not with a cache, a packing or prompts.
    """

    bias: Tensor | None = None
    memory: ReadMemory | None = None
    cache: TokenCache | None = None
    rotary: Rotary | None = None
    packing: Packing | None = None
    prompts: Prompts | None = None
    is_causal: bool = False
    num_read: int | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors that may need a gradient."""
        return self.bias, *(() if self.memory is None else self.memory.tensors)

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> LayerInputs:
        """The same inputs with other tensors, in the order of `tensors`."""
        bias, *others = tensors
        return replace(self, bias=bias, memory=None if self.memory is None else self.memory.with_tensors(others))
