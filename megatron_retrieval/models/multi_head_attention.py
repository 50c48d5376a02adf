"""Self-attention and cross-attention with their projections, sharded over tensor-parallel ranks by heads."""

from __future__ import annotations

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_retrieval.models.attention import ScaledDotProductAttention
from megatron_retrieval.models.engine import leave_uninitialised
from megatron_retrieval.models.layer_inputs import LayerInputs
from megatron_retrieval.models.linear import ColumnParallelLinear, RowParallelLinear
from megatron_retrieval.models.memory import KeysAndValues


class SelfAttention(nn.Module):
    """Attention among the tokens of a sequence; query, key and value are interleaved by head in one matrix."""

    def __init__(self, config: TransformerConfig, groups: ProcessGroupCollection) -> None:
        super().__init__()
        self.head_width: int = config.kv_channels
        self.linear_qkv = _column_parallel(config, groups, 3)
        self.core_attention = _core_attention(config)
        self.linear_proj = _projection(config, groups)

    def forward(self, states: Tensor, inputs: LayerInputs) -> Tensor:
        """[L, R, D] -> [L, R, D]; reads the bias and the cache, whose tokens precede those of `states`."""
        query, key, value = _heads(self.linear_qkv(states)[0], self.head_width, 3)
        if inputs.cache is not None:
            key, value = inputs.cache.extend(self, key, value)
        output: Tensor = self.linear_proj(self.core_attention(query, key, value, inputs.bias))[0]
        return output


class CrossAttention(nn.Module):
    """Attention of a decoder's states to a memory; key and value are interleaved by head in one matrix."""

    def __init__(self, config: TransformerConfig, groups: ProcessGroupCollection) -> None:
        super().__init__()
        self.head_width: int = config.kv_channels
        self.scale = _softmax_scale(config)
        self.linear_q = _column_parallel(config, groups, 1)
        self.linear_kv = _column_parallel(config, groups, 2)
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
        """[S, T, D] states of S sources -> [T, S, heads of this rank, head width] each."""
        key, value = (part.transpose(0, 1) for part in _heads(self.linear_kv(states)[0], self.head_width, 2))
        return key, value


def _softmax_scale(config: TransformerConfig) -> float:
    scale: float = config.kv_channels**-0.5 if config.softmax_scale is None else config.softmax_scale
    return scale


def _column_parallel(config: TransformerConfig, groups: ProcessGroupCollection, num_parts: int) -> ColumnParallelLinear:
    return ColumnParallelLinear(
        config.hidden_size,
        num_parts * config.num_attention_heads * config.kv_channels,
        parts=(config.kv_channels,) * num_parts if num_parts > 1 else None,
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


def _core_attention(config: TransformerConfig) -> ScaledDotProductAttention:
    return ScaledDotProductAttention(scale=_softmax_scale(config), dropout=config.attention_dropout)


def _heads(states: Tensor, head_width: int, num_parts: int) -> tuple[Tensor, ...]:
    """[..., heads * parts * width] -> for each part [..., heads, width]."""
    return states.unflatten(-1, (-1, num_parts, head_width)).unbind(-2)
