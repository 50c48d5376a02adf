"""Self-attention and cross-attention of encoder-decoders, with caches of keys and values for generation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_retrieval.models.attention import ScaledDotProductAttention
from megatron_retrieval.models.engine import leave_uninitialised
from megatron_retrieval.models.linear import ColumnParallelLinear, RowParallelLinear
from megatron_retrieval.models.score_attention import ScoreForm, add_key_features, add_query_features

KeysAndValues = tuple[Tensor, Tensor]


@dataclass
class LayerCache:
    """Keys and values that one decoder layer has computed, each [T, B, heads of this rank, head width].

    Attributes:
        own: of the decoder's tokens so far.
        memory: of the encoder states.
    """

    own: KeysAndValues | None = None
    memory: KeysAndValues | None = None


class DecoderCache:
    """What a decoder need not compute again when it goes on from the tokens that it has seen.

    An empty one goes into the first call of the decoder, together with the encoder states; each call fills it, and
    later calls give only the new tokens.
    """

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerCache() for _ in range(num_layers)]

    @property
    def num_tokens(self) -> int:
        """Tokens seen so far, the same number in every row."""
        own = self.layers[0].own
        return 0 if own is None else own[0].size(0)

    @property
    def has_memory(self) -> bool:
        """Whether the encoder states are no longer needed."""
        return self.layers[0].memory is not None

    def reorder(self, rows: Tensor) -> None:
        """Go on with the sequences `rows` [R] (beams that survive, in their new order); the sources stay."""
        for layer in self.layers:
            layer.own = _select(layer.own, rows)

    def keep_sources(self, sources: Tensor) -> None:
        """Go on with these of the sources alone; the caller reorders the sequences, which belong to them in order."""
        for layer in self.layers:
            if layer.memory is not None:
                key, value = (_by_head(states.index_select(1, sources)) for states in layer.memory)
                layer.memory = (key, value)


class SelfAttention(nn.Module):
    """Attention among the tokens of a sequence; query, key and value lie interleaved by head in one matrix."""

    def __init__(self, config: TransformerConfig, groups: ProcessGroupCollection, layer_number: int) -> None:
        super().__init__()
        self.head_width = _head_width(config)
        self.linear_qkv = _column_parallel(config, groups, 3)
        self.core_attention = _core_attention(config, layer_number)
        self.linear_proj = _projection(config, groups)

    def forward(self, states: Tensor, bias: Tensor | None, cache: LayerCache | None = None) -> Tensor:
        """[T, B, D] -> [T, B, D].

        Args:
            bias: broadcastable to [B, heads of this rank, T, T of keys], added to the logits; the keys are those of
                the cache and then those of `states`.
        """
        query, key, value = _heads(self.linear_qkv(states)[0], self.head_width, 3)
        if cache is not None:
            if cache.own is not None:
                key, value = (torch.cat(parts) for parts in zip(cache.own, (key, value), strict=True))
            cache.own = (key, value)
        output: Tensor = self.linear_proj(self.core_attention(query, key, value, bias))[0]
        return output


class CrossAttention(nn.Module):
    """Attention of decoder states to encoder states; key and value lie interleaved by head in one matrix."""

    def __init__(self, config: TransformerConfig, groups: ProcessGroupCollection, layer_number: int) -> None:
        super().__init__()
        self.head_width, self.scale = _head_width(config), _softmax_scale(config)
        self.linear_q = _column_parallel(config, groups, 1)
        self.linear_kv = _column_parallel(config, groups, 2)
        self.core_attention = _core_attention(config, layer_number)
        self.linear_proj = _projection(config, groups)

    def forward(
        self,
        states: Tensor,
        memory: Tensor | None,
        bias: Tensor | None,
        cache: LayerCache | None = None,
        form: ScoreForm = "mask",
    ) -> Tensor:
        """[L, R, D] -> [L, R, D].

        Args:
            states: of R = B * n sequences, n for each source (beams, answers), those of a source side by side.
            memory: [B, T, D] encoder states; not read where the cache has their keys and values.
            bias: [B, 1, 1, T], added to the logits.
            form: in which it is added; where there is a cache, in all calls the same.
        """
        has_features = form == "feature" and bias is not None
        key, value = self._keys_and_values(memory, cache, bias if has_features else None)
        (query,) = _heads(self.linear_q(states)[0], self.head_width, 1)
        num_tokens, num_rows = query.shape[:2]
        # the sequences of one source are so many more queries: its keys and values are not copied for each
        query = query.unflatten(1, (key.size(1), -1)).transpose(1, 2).flatten(0, 1)
        if has_features:
            attended = self.core_attention(add_query_features(query), key, value, None)
            attended = attended.unflatten(2, (query.size(2), -1))[..., : self.head_width].flatten(2)
        else:
            attended = self.core_attention(query, key, value, bias, is_explicit=form == "explicit")
        attended = attended.unflatten(0, (num_tokens, -1)).transpose(1, 2).reshape(num_tokens, num_rows, -1)
        output: Tensor = self.linear_proj(attended)[0]
        return output

    def _keys_and_values(
        self, memory: Tensor | None, cache: LayerCache | None, bias_as_features: Tensor | None
    ) -> KeysAndValues:
        if cache is not None and cache.memory is not None:
            return cache.memory
        if memory is None:
            raise ValueError("a decoder needs encoder states, or a cache that has seen them")
        key, value = (states.transpose(0, 1) for states in _heads(self.linear_kv(memory)[0], self.head_width, 2))
        if bias_as_features is not None:
            key, value = add_key_features(key, value, bias_as_features, self.scale)
        if cache is not None:
            # laid out as attention reads them, since every further token does
            key, value = (_by_head(states) for states in (key, value))
            cache.memory = (key, value)
        return key, value


def _head_width(config: TransformerConfig) -> int:
    width: int = config.kv_channels
    return width


def _softmax_scale(config: TransformerConfig) -> float:
    scale: float = config.kv_channels**-0.5 if config.softmax_scale is None else config.softmax_scale
    return scale


def _column_parallel(config: TransformerConfig, groups: ProcessGroupCollection, num_parts: int) -> ColumnParallelLinear:
    return ColumnParallelLinear(
        config.hidden_size,
        num_parts * config.num_attention_heads * config.kv_channels,
        config=config,
        init_method=leave_uninitialised,
        bias=config.add_bias_linear,
        tp_group=groups.tp,
    )


def _projection(config: TransformerConfig, groups: ProcessGroupCollection) -> RowParallelLinear:
    return RowParallelLinear(
        config.num_attention_heads * config.kv_channels,
        config.hidden_size,
        config=config,
        init_method=leave_uninitialised,
        bias=config.add_bias_linear,
        input_is_parallel=True,
        skip_bias_add=False,
        tp_group=groups.tp,
    )


def _core_attention(config: TransformerConfig, layer_number: int) -> ScaledDotProductAttention:
    return ScaledDotProductAttention(
        config, layer_number, AttnMaskType.padding, "self", softmax_scale=_softmax_scale(config)
    )


def _heads(states: Tensor, head_width: int, num_parts: int) -> tuple[Tensor, ...]:
    """[..., heads * parts * width] -> for each part [..., heads, width]."""
    return states.unflatten(-1, (-1, num_parts, head_width)).unbind(-2)


def _by_head(states: Tensor) -> Tensor:
    """[T, B, heads, width], in memory [B, heads, T, width]."""
    return states.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3)


def _select(states: KeysAndValues | None, rows: Tensor) -> KeysAndValues | None:
    return None if states is None else (states[0].index_select(1, rows), states[1].index_select(1, rows))
