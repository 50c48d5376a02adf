"""Memories: encoded sources that the cross-attention of a decoder reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from torch import Tensor

from megatron_retrieval.models.attention import padding_bias
from megatron_retrieval.models.score_attention import ScoreForm, add_key_features, attend_to_features

KeysAndValues = tuple[Tensor, Tensor]


class CrossAttending(Protocol):
    """The part of a cross-attention module that a memory uses.

    Attributes:
        scale: factor of the products of queries and keys.
        core_attention: see `ScaledDotProductAttention`.
    """

    @property
    def scale(self) -> float: ...

    @property
    def core_attention(self) -> Callable[..., Tensor]: ...

    def keys_and_values(self, states: Tensor) -> KeysAndValues:
        """[S, T, D] states of S sources -> [T, S, heads of this rank, head width] each."""
        ...


class ReadMemory(Protocol):
    """What the layers of a decoder know of a memory; all of them are passed the same one."""

    @property
    def tensors(self) -> Sequence[Tensor | None]:
        """The tensors that may need a gradient; recomputed layers take them as arguments."""
        ...

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Self:
        """The same memory with other tensors, in the order of `tensors`."""
        ...

    def read(self, attention: CrossAttending, query: Tensor) -> Tensor:
        """Attend: [L, R, heads of this rank, head width] queries of R sequences -> [L, R, heads * head width]."""
        ...


class Memory(ReadMemory, Protocol):
    """Encoded sources, and the rule that assigns a source to every query. Immutable: methods return another memory.

    Attributes:
        num_sources: number of sources; generation decodes sequences for each.
        device: that of its tensors.
    """

    @property
    def num_sources(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def for_rank(self, tp_group: dist.ProcessGroup) -> Self:
        """The same memory for the heads of this rank; a decoder calls it once for all layers.

        Gradients of tensors that no tensor-parallel matrix reads are summed over the group.
        """
        ...

    def precompute(self, attentions: Iterable[CrossAttending]) -> Self:
        """The same memory with the keys and values of these modules, for generation: later reads reuse them."""
        ...

    def select(self, rows: Tensor | None, sources: Tensor | None) -> Self:
        """The memory of the sequences that generation continues.

        Args:
            rows: [R] int64, index of the sequence that each row continues; None: all, in their order.
            sources: [S] int64, indices of the sources that are still read, in the order of their sequences; None: all.
        """
        ...


@dataclass(frozen=True)
class EncodedMemory:
    """The states of an encoder: every query of a sequence reads all of the sequence's source.

    Sequences may be more than sources: R = B * n, n for each source (beams, answers), in consecutive rows.

    Attributes:
        states: [B, T, D]; T is 0 after `precompute`.
        bias: [B, 1, 1, T] added to the logits of every head, layer and query: the lowest number at padding, a score
            elsewhere; or broadcastable to [B, heads of this rank, n * L, T], by query. Differentiable, also with tensor
            parallelism. None: nothing is added.
        form: how `bias` is added, see `score_attention`.
        computed: keys and values by attention module.
    """

    states: Tensor
    bias: Tensor | None = None
    form: ScoreForm = "mask"
    computed: Mapping[CrossAttending, KeysAndValues] | None = None

    @classmethod
    def of_texts(cls, states: Tensor, lengths: Tensor, form: ScoreForm = "mask") -> EncodedMemory:
        """[B, T, D] states of texts, of which the first `lengths` [B], on the CPU, are read."""
        return cls(states, padding_bias(lengths, states.size(1), states.dtype, states.device), form)

    @property
    def num_sources(self) -> int:
        """See Memory."""
        return len(self.states)

    @property
    def device(self) -> torch.device:
        """See Memory."""
        return self.states.device

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """See Memory."""
        return self.states, self.bias

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> EncodedMemory:
        """See Memory."""
        states, bias = tensors
        assert states is not None
        return replace(self, states=states, bias=bias)

    def for_rank(self, tp_group: dist.ProcessGroup) -> EncodedMemory:
        """See Memory."""
        if self.bias is None:
            return self
        return replace(self, bias=copy_to_tensor_model_parallel_region(self.bias, group=tp_group))

    def read(self, attention: CrossAttending, query: Tensor) -> Tensor:
        """See Memory."""
        key, value = self._keys_and_values(attention)
        num_tokens, num_rows = query.shape[:2]
        # all sequences of a source are queries of one row, so that its keys and values are not copied
        query = query.unflatten(1, (key.size(1), -1)).transpose(1, 2).flatten(0, 1)
        if self._bias_is_in_keys:
            attended = attend_to_features(attention.core_attention, query, key, value)
        else:
            attended = attention.core_attention(query, key, value, self.bias, is_explicit=self.form == "explicit")
        return attended.unflatten(0, (num_tokens, -1)).transpose(1, 2).reshape(num_tokens, num_rows, -1)

    def precompute(self, attentions: Iterable[CrossAttending]) -> EncodedMemory:
        """See Memory."""
        computed = {attention: by_head(*self._keys_and_values(attention)) for attention in attentions}
        return replace(self, states=self.states.new_empty(len(self.states), 0, self.states.size(2)), computed=computed)

    def select(self, rows: Tensor | None, sources: Tensor | None) -> EncodedMemory:
        """See Memory; `rows` have no effect, since sequences of one source share it."""
        if sources is None:
            return self
        computed = self.computed and {
            attention: by_head(key.index_select(1, sources), value.index_select(1, sources))
            for attention, (key, value) in self.computed.items()
        }
        bias = None if self.bias is None else self.bias[sources]
        return replace(self, states=self.states[sources], bias=bias, computed=computed)

    @property
    def _bias_is_in_keys(self) -> bool:
        return self.form == "feature" and self.bias is not None

    def _keys_and_values(self, attention: CrossAttending) -> KeysAndValues:
        if self.computed is not None:
            return self.computed[attention]
        key, value = attention.keys_and_values(self.states)
        if self.bias is not None and self._bias_is_in_keys:
            key, value = add_key_features(key, value, self.bias, attention.scale)
        return key, value


def by_head(*parts: Tensor) -> KeysAndValues:
    """[T, B, heads, width], contiguous as [B, heads, T, width], the order in which attention reads them."""
    key, value = (states.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3) for states in parts)
    return key, value
