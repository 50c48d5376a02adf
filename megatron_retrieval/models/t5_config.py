"""Shape of a T5, the configuration of its layers and the spread of its initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.engine import engine_config


@dataclass(kw_only=True, frozen=True)
class T5Config:
    """Shape and regularisation of a T5; the defaults are T5 1.0, base."""

    num_layers: int = 12
    """Transformer layers of the encoder."""
    decoder_num_layers: int | None = None
    """Transformer layers of the decoder; default: as many as the encoder has."""
    hidden_size: int = 768
    """Width of the hidden states."""
    num_attention_heads: int = 12
    """Attention heads; a multiple of the tensor-parallel size."""
    kv_channels: int | None = None
    """Width of an attention head; default: hidden size / attention heads."""
    ffn_hidden_size: int = 3072
    """Width of the feed-forward layers."""
    gated_linear_unit: bool = False
    """Gated GELU in the feed-forward layers (T5 1.1, Flan); default: ReLU (T5 1.0)."""
    untie_embeddings_and_output_weights: bool = False
    """The output layer has its own matrix (T5 1.1, Flan); default: it shares the word embeddings, and hidden states
    are divided by the root of their width before it (T5 1.0)."""
    relative_attention_num_buckets: int = 32
    """Number of buckets of the relative position bias."""
    relative_attention_max_distance: int = 128
    """Distance in tokens from which on all distances share a bucket."""
    vocab_size: int = 32128
    """Rows of the word embeddings; public models have more rows than the tokenizer has entries."""
    hidden_dropout: float = 0.1
    """Share of hidden activations dropped in training."""
    attention_dropout: float = 0.1
    """Share of attention weights dropped in training."""
    layernorm_epsilon: float = 1e-6
    """Added to the mean square in norms."""
    recompute_granularity: Literal["none", "full"] = "none"
    """full: keep only each layer's input for the backward pass and compute the layer again; less memory, more time."""

    def __post_init__(self) -> None:
        if self.kv_channels is None and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"--num-attention-heads {self.num_attention_heads} does not divide --hidden-size {self.hidden_size}; "
                "give --kv-channels."
            )

    @property
    def max_positions(self) -> int | None:
        """Positions are relative: sequences may be of any length."""
        return None

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def num_decoder_layers(self) -> int:
        """Transformer layers of the decoder."""
        return self.num_layers if self.decoder_num_layers is None else self.decoder_num_layers


def t5_engine_config(config: T5Config, tp_size: int, dtype: torch.dtype) -> TransformerConfig:
    """The configuration of the layers.

    Raises:
        ConfigError: the tensor-parallel size does not divide the heads and the feed-forward units.
    """
    return engine_config(
        tp_size=tp_size,
        dtype=dtype,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        kv_channels=config.head_width,
        ffn_hidden_size=config.ffn_hidden_size,
        hidden_dropout=config.hidden_dropout,
        attention_dropout=config.attention_dropout,
        layernorm_epsilon=config.layernorm_epsilon,
        normalization="RMSNorm",
        add_bias_linear=False,
        gated_linear_unit=config.gated_linear_unit,
        activation_func=_gelu if config.gated_linear_unit else F.relu,
        softmax_scale=1.0,  # the initial weights of queries contain the usual scale
    )


def _gelu(states: Tensor) -> Tensor:
    return F.gelu(states, approximate="tanh")


def t5_initial_std(config: T5Config, name: str) -> float | Tensor:
    """The standard deviation of a matrix's initial weights in T5's pretraining."""
    by_width, width = config.hidden_size**-0.5, config.head_width
    for_query = by_width * width**-0.5
    of_matrix: dict[str, float | Tensor] = {
        "linear_qkv.weight": torch.tensor([for_query, by_width, by_width])
        .repeat_interleave(width)
        .repeat(config.num_attention_heads)[:, None],
        "linear_q.weight": for_query,
        "linear_kv.weight": by_width,
        "linear_proj.weight": (config.num_attention_heads * width) ** -0.5,
        "linear_fc1.weight": by_width,
        "linear_fc2.weight": config.ffn_hidden_size**-0.5,
        "relative_bias.weight": by_width,
    }
    return next((std for ending, std in of_matrix.items() if name.endswith(ending)), 1.0)
