"""Self-attention and cross-attention with their projections, sharded over tensor-parallel ranks by heads."""

from __future__ import annotations

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.models.attention import ScaledDotProductAttention
from megatron_retrieval.models.engine import leave_uninitialised
from megatron_retrieval.models.layer_inputs import LayerInputs
from megatron_retrieval.models.linear import ColumnParallelLinear, RowParallelLinear
from megatron_retrieval.models.memory import KeysAndValues


class SelfAttention(nn.Module):
    """Attention among the tokens of a sequence; query, key and value are interleaved by head in one matrix.

    Where heads share keys and values, each group of heads has its queries, then its key and its value there.
    """

    def __init__(self, config: TransformerConfig, groups: ProcessGroupCollection) -> None:
        super().__init__()
        self.head_width: int = config.kv_channels
        num_groups = config.num_query_groups
        heads = (config.num_attention_heads // num_groups, 1, 1)
        self.heads_per_group = sum(heads)
        self.linear_qkv = _column_parallel(config, groups, num_groups, heads, bias=config.add_qkv_bias)
        self.query_norm = HeadNorm(config, groups) if config.qk_layernorm else None
        self.key_norm = HeadNorm(config, groups) if config.qk_layernorm else None
        self.core_attention = _core_attention(config)
        self.linear_proj = _projection(config, groups)

    def forward(self, states: Tensor, inputs: LayerInputs) -> Tensor:
        """[L, R, D] -> [L, R, D], or [num_read, R, D]; reads the bias, positions, prompts, and the cache, whose tokens
        precede those of `states`."""
        query, key, value = self._query_key_value(states, inputs)
        bias = inputs.bias
        if inputs.num_read is not None:
            query, bias = query[: inputs.num_read], None if bias is None else bias[..., : inputs.num_read, :]
        if inputs.cache is not None:
            key, value = inputs.cache.extend(self, key, value)
        if inputs.prompts is not None:
            attended = inputs.prompts.attend(self, query, key, value, bias)
        else:
            attended = self.core_attention(query, key, value, bias, is_causal=inputs.is_causal)
        if inputs.packing is not None:
            attended = inputs.packing.unpad(attended)
        output: Tensor = self.linear_proj(attended)[0]
        return output

    def _query_key_value(self, states: Tensor, inputs: LayerInputs) -> tuple[Tensor, Tensor, Tensor]:
        """[L, R, heads of this rank, head width] each, key and value with the heads that are shared."""
        parts = self.linear_qkv(states)[0].unflatten(-1, (-1, self.heads_per_group, self.head_width))
        if self.heads_per_group == 3:  # one way back for the three gradients
            query, key, value = parts.unbind(-2)
        else:
            query, key, value = parts[..., :-2, :].flatten(-3, -2), parts[..., -2, :], parts[..., -1, :]
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if inputs.rotary is not None:
            query, key = inputs.rotary.turn(query), inputs.rotary.turn(key)
        if inputs.packing is not None:
            query, key, value = (inputs.packing.pad(part) for part in (query, key, value))
        return query, key, value


class HeadNorm(nn.Module):
    """RMSNorm over the units of each head; one weight for all heads, hence of all tensor-parallel ranks."""

    def __init__(self, config: TransformerConfig, groups: ProcessGroupCollection) -> None:
        super().__init__()
        self._epsilon, self._tp_group = config.layernorm_epsilon, groups.tp
        self.weight = nn.Parameter(torch.ones(config.kv_channels))

    def forward(self, states: Tensor) -> Tensor:
        """[..., head width] -> the same, normalised."""
        # each rank has other heads: the gradient of the weight is the sum of theirs
        weight = copy_to_tensor_model_parallel_region(self.weight, group=self._tp_group)
        return F.rms_norm(states, weight.shape, weight, self._epsilon)


class CrossAttention(nn.Module):
    """Attention of a decoder's states to a memory; key and value are interleaved by head in one matrix, or by group
    where heads share them.

    Args:
        memory_size: width of the memory's states; default: that of the decoder's.
    """

    def __init__(
        self, config: TransformerConfig, groups: ProcessGroupCollection, *, memory_size: int | None = None
    ) -> None:
        super().__init__()
        self.head_width: int = config.kv_channels
        self.scale = _softmax_scale(config)
        self.linear_q = _column_parallel(config, groups, config.num_attention_heads, (1,))
        self.linear_kv = _column_parallel(config, groups, config.num_query_groups, (1, 1), input_size=memory_size)
        self.core_attention = _core_attention(config)
        self.linear_proj = _projection(config, groups)

    def forward(self, states: Tensor, inputs: LayerInputs) -> Tensor:
        """[L, R, D] -> [L, R, D]; reads the memory.

        Raises:
            ValueError: there is none.
        """
        if inputs.memory is None:
            raise ValueError("cross-attention needs a memory")
        (query,) = _heads(self.linear_q(states)[0], self.head_width, 1)
        output: Tensor = self.linear_proj(inputs.memory.read(self, query))[0]
        return output

    def keys_and_values(self, states: Tensor) -> KeysAndValues:
        """[S, T, D] states of S sources -> [T, S, heads or groups of this rank, head width] each."""
        key, value = (part.transpose(0, 1) for part in _heads(self.linear_kv(states)[0], self.head_width, 2))
        return key, value


def _softmax_scale(config: TransformerConfig) -> float:
    scale: float = config.kv_channels**-0.5 if config.softmax_scale is None else config.softmax_scale
    return scale


def _column_parallel(
    config: TransformerConfig,
    groups: ProcessGroupCollection,
    num_groups: int,
    heads: tuple[int, ...],
    *,
    bias: bool = False,
    input_size: int | None = None,
) -> ColumnParallelLinear:
    """Parts of so many heads each, interleaved by group."""
    parts = tuple(number * config.kv_channels for number in heads)
    return ColumnParallelLinear(
        input_size or config.hidden_size,
        num_groups * sum(parts),
        parts=parts if len(parts) > 1 else None,
        config=config,
        init_method=leave_uninitialised,
        bias=bias or config.add_bias_linear,
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


def _core_attention(config: TransformerConfig) -> ScaledDotProductAttention:
    return ScaledDotProductAttention(scale=_softmax_scale(config), dropout=config.attention_dropout)


def _heads(states: Tensor, head_width: int, num_parts: int) -> tuple[Tensor, ...]:
    """[..., heads * parts * width] -> for each part [..., heads, width]."""
    return states.unflatten(-1, (-1, num_parts, head_width)).unbind(-2)
