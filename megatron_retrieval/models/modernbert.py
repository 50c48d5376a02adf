"""ModernBERT (Warner et al. 2024, arXiv 2412.13663): norms before the parts, rotary positions, gated feed-forward
networks, no biases; most layers see a window, every few the whole text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.attention import additive, padding_bias
from megatron_retrieval.models.dropout import Dropout
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.engine import engine_config, word_embeddings
from megatron_retrieval.models.feed_forward import FeedForward
from megatron_retrieval.models.layer_inputs import LayerInputs
from megatron_retrieval.models.layers import Layer, LayerStack, Part
from megatron_retrieval.models.multi_head_attention import SelfAttention
from megatron_retrieval.models.rotary import rotary
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch, to_device


@dataclass(kw_only=True, frozen=True)
class ModernBertConfig(EncoderShape):
    """Shape and regularisation of a ModernBERT encoder; the defaults are ModernBERT-base."""

    num_layers: int = 22
    """Transformer layers."""
    hidden_size: int = 768
    """Width of the hidden states."""
    num_attention_heads: int = 12
    """Attention heads; must divide the hidden size, and be a multiple of the tensor-parallel size."""
    ffn_hidden_size: int = 1152
    """Width of the feed-forward layers, which are gated (GeGLU)."""
    max_position_embeddings: int = 8192
    """Longest sequence in tokens."""
    vocab_size: int = 50368
    """Rows of the word embeddings."""
    global_attention_interval: int = 3
    """Every so many layers, the first among them, one sees the whole text; the others see a window."""
    local_attention: int = 128
    """Width of the window in tokens: a token sees half of them on each side."""
    rotary_base: float = 160000.0
    """Base of the rotary positions in layers that see the whole text."""
    local_rotary_base: float = 10000.0
    """Base of the rotary positions in the other layers."""
    hidden_dropout: float = 0.0
    """Share of hidden activations dropped in training."""
    attention_dropout: float = 0.0
    """Share of attention weights dropped in training."""
    layernorm_epsilon: float = 1e-5
    """Added to the variance in layer norms."""
    init_method_std: float = 0.02
    """Standard deviation of initial weights."""
    recompute_granularity: Literal["none", "full"] = "none"
    """full: keep only each layer's input for the backward pass and compute the layer again; less memory, more time."""

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ConfigError(
                f"--num-attention-heads {self.num_attention_heads}: --hidden-size {self.hidden_size} must be an even "
                "multiple of it, as rotary positions need."
            )

    @property
    def max_positions(self) -> int:
        """See EncoderShape."""
        return self.max_position_embeddings

    @property
    def norm_epsilon(self) -> float:
        """See EncoderShape; as in the encoder's own."""
        return self.layernorm_epsilon

    @property
    def pooler_activation(self) -> Literal["tanh", "relu", "gelu"]:
        """See EncoderShape."""
        return "gelu"

    @property
    def pooler_norm(self) -> bool:
        """See EncoderShape."""
        return True

    @property
    def head_biases(self) -> bool:
        """See EncoderShape."""
        return False

    def is_global(self, layer: int) -> bool:
        """Whether a layer, counted from 0, sees the whole text."""
        return layer % self.global_attention_interval == 0

    def build_encoder(self, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> ModernBertEncoder:
        """See EncoderShape."""
        return ModernBertEncoder(self, topology, dtype)


class ModernBertEncoder(MegatronModule):
    """Token ids to hidden states.

    Parameters are sharded over `topology`'s tensor-parallel group; the caller initialises or loads them.
    """

    def __init__(self, config: ModernBertConfig, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> None:
        engine = _engine_config(config, topology.tp_size, dtype)
        super().__init__(config=engine)
        self.bert_config = config
        self.embedding = _Embedding(config, engine, topology.groups)
        self.encoder = LayerStack(_layer(config, engine, topology.groups, n) for n in range(config.num_layers))
        self.final_layernorm = _norm(config)
        self.to(dtype)

    def forward(self, batch: TokenBatch, segments: Tensor | None = None, num_read: int | None = None) -> Tensor:
        """[B, T] ids -> [B, T, D] hidden states in the model's dtype; segments are not told apart.

        Args:
            num_read: tokens, from the first on, whose states are wanted: [B, num_read, D]; default: all.

        Raises:
            ConfigError: a sequence is longer than the positions.
        """
        config, num_tokens = self.bert_config, batch.ids.size(1)
        if num_tokens > config.max_position_embeddings:
            raise ConfigError(
                f"a sequence of {num_tokens} tokens exceeds the encoder's {config.max_position_embeddings} positions "
                "(--max-position-embeddings); lower the sequence length."
            )
        states, inputs = self.embedding(batch.ids), self._inputs(batch)
        for number, layer in enumerate(self.encoder.layers):
            of_layer = inputs[config.is_global(number)]
            is_last = number == config.num_layers - 1
            states = layer(states, replace(of_layer, num_read=num_read) if is_last else of_layer)
        normalised: Tensor = self.final_layernorm(states)
        return normalised.transpose(0, 1)

    def first_states(self, batch: TokenBatch, segments: Tensor | None = None) -> Tensor:
        """See `encoder.first_states`."""
        states: Tensor = self(batch, segments, 1)
        return states[:, 0]

    def _inputs(self, batch: TokenBatch) -> dict[bool, LayerInputs]:
        """Masks and positions of layers that see the whole text, and of those that see a window."""
        config, dtype, device = self.bert_config, self.config.params_dtype, batch.ids.device
        num_tokens = batch.ids.size(1)
        places = torch.arange(num_tokens, device=device)[:, None]
        head_width = config.hidden_size // config.num_attention_heads
        whole = padding_bias(batch.lengths, num_tokens, dtype, device)
        near = _window_bias(batch.lengths, num_tokens, config.local_attention // 2, dtype, device)
        return {
            True: LayerInputs(whole, rotary=rotary(places, head_width, config.rotary_base, dtype)),
            False: LayerInputs(near, rotary=rotary(places, head_width, config.local_rotary_base, dtype)),
        }


class _Embedding(nn.Module):
    """Word embeddings, normalised: [B, T] ids -> [T, B, D]."""

    def __init__(self, config: ModernBertConfig, engine: TransformerConfig, groups: ProcessGroupCollection) -> None:
        super().__init__()
        self.word_embeddings = word_embeddings(config.vocab_size, engine, groups)
        self.norm = _norm(config)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.dropout(self.norm(self.word_embeddings(ids.t())))
        return states


def _window_bias(
    lengths: Tensor, num_tokens: int, most: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """[B, 1, T, T] additive mask that hides padding, and tokens further away than `most`; see `padding_bias`.

    What is behind a text and too far from it sees itself: fused kernels have no gradient for a row without keys.
    """
    if num_tokens <= most + 1:
        return padding_bias(lengths, num_tokens, dtype, device)
    rows = torch.arange(num_tokens, device=device)[:, None]
    columns, ends = rows.t(), to_device(lengths, device)[:, None, None]
    hidden = ((rows - columns).abs() > most) | (columns >= ends)
    hidden &= (rows != columns) | (rows - most < ends)
    return additive(hidden[:, None], dtype)


def _norm(config: ModernBertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, config.layernorm_epsilon, bias=False)


def _layer(config: ModernBertConfig, engine: TransformerConfig, groups: ProcessGroupCollection, number: int) -> Layer:
    """The first has the norm of the embeddings in the place of its own."""
    before = nn.Identity() if number == 0 else _norm(config)
    parts = [
        Part("self_attention", SelfAttention(engine, groups), "input_layernorm", before, "before"),
        Part("mlp", FeedForward(engine, groups, 0.0), "pre_mlp_layernorm", _norm(config), "before"),
    ]
    return Layer(parts, dropout=config.hidden_dropout, recompute=config.recompute_granularity == "full")


def _engine_config(config: ModernBertConfig, tp_size: int, dtype: torch.dtype) -> TransformerConfig:
    return engine_config(
        tp_size=tp_size,
        dtype=dtype,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        ffn_hidden_size=config.ffn_hidden_size,
        hidden_dropout=config.hidden_dropout,
        attention_dropout=config.attention_dropout,
        layernorm_epsilon=config.layernorm_epsilon,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.gelu,
    )
