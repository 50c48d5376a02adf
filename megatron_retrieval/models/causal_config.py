"""Shape of a causal language model of Llama's kind, and the configuration of its layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.config.marks import LATER
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.engine import engine_config
from megatron_retrieval.models.rotary import Rotary, rotary


@dataclass(kw_only=True, frozen=True)
class CausalShape:
    """Shape and regularisation of a causal language model; the defaults are SmolLM2-135M."""

    num_layers: int = 30
    """Transformer layers."""
    hidden_size: int = 576
    """Width of the hidden states."""
    num_attention_heads: int = 9
    """Attention heads."""
    num_query_groups: int | None = None
    """Groups of heads that share a key and a value, a multiple of the tensor-parallel size; default: one per head."""
    kv_channels: int | None = None
    """Width of an attention head; default: hidden size / attention heads."""
    ffn_hidden_size: int = 1536
    """Width of the feed-forward layers, which are gated (SwiGLU)."""
    max_position_embeddings: int = 8192
    """Longest sequence in tokens."""
    rotary_base: float = 100000.0
    """Base of the rotary positions."""
    rope_scaling_factor: float | None = field(default=None, metadata=LATER)
    """Stretches the rotary positions as Llama 3.1 (8) and 3.2 (32) do; default: they are not."""
    window_size: int | None = None
    """Tokens that a token sees, itself included (Mistral's sliding window); default: all earlier ones."""
    add_qkv_bias: bool = False
    """Queries, keys and values have biases (Qwen 2)."""
    qk_layernorm: bool = False
    """Queries and keys of every head are normalised (Qwen 3)."""
    untie_embeddings_and_output_weights: bool = False
    """The output layer has a matrix of its own; default: it shares the word embeddings."""
    vocab_size: int = 49152
    """Rows of the word embeddings; models may have more rows than the vocabulary has entries."""
    hidden_dropout: float = 0.0
    """Share of hidden activations dropped in training."""
    attention_dropout: float = 0.0
    """Share of attention weights dropped in training."""
    layernorm_epsilon: float = 1e-5
    """Added to the mean square in norms."""
    init_method_std: float = 0.02
    """Standard deviation of initial weights."""
    recompute_granularity: Literal["none", "full"] = "none"
    """full: keep only each layer's input for the backward pass and compute the layer again; less memory, more time."""

    def __post_init__(self) -> None:
        if self.kv_channels is None and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"--num-attention-heads {self.num_attention_heads} does not divide --hidden-size {self.hidden_size}; "
                "give --kv-channels."
            )
        if self.num_attention_heads % self.num_groups:
            raise ConfigError(
                f"--num-query-groups {self.num_query_groups} does not divide --num-attention-heads "
                f"{self.num_attention_heads}."
            )
        if self.head_width % 2:
            raise ConfigError(f"heads of {self.head_width} units have no rotary positions, which need an even number.")

    @property
    def max_positions(self) -> int:
        """See EncoderShape."""
        return self.max_position_embeddings

    @property
    def num_groups(self) -> int:
        """Groups of heads that share a key and a value."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    def rotary(self, positions: Tensor, dtype: torch.dtype) -> Rotary:
        """The angles of tokens at `positions` [L, R or 1]."""
        return rotary(positions, self.head_width, self.rotary_base, dtype, self.rope_scaling_factor)


def causal_engine_config(shape: CausalShape, tp_size: int, dtype: torch.dtype) -> TransformerConfig:
    """The configuration of the layers.

    Raises:
        ConfigError: the tensor-parallel size does not divide the groups of heads and the feed-forward units.
    """
    return engine_config(
        tp_size=tp_size,
        dtype=dtype,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_groups,
        kv_channels=shape.head_width,
        ffn_hidden_size=shape.ffn_hidden_size,
        hidden_dropout=shape.hidden_dropout,
        attention_dropout=shape.attention_dropout,
        layernorm_epsilon=shape.layernorm_epsilon,
        normalization="RMSNorm",
        add_bias_linear=False,
        add_qkv_bias=shape.add_qkv_bias,
        qk_layernorm=shape.qk_layernorm,
        gated_linear_unit=True,
        activation_func=F.silu,
    )
