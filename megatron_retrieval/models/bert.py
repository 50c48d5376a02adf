"""The original BERT (layer norm after each residual sum) out of tensor-parallel layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.attention import padding_bias
from megatron_retrieval.models.dropout import Dropout
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.engine import engine_config, word_embeddings
from megatron_retrieval.models.layer_inputs import LayerInputs
from megatron_retrieval.models.layers import Layer, LayerStack, transformer_layer
from megatron_retrieval.parallel.determinism import is_deterministic
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch


@dataclass(kw_only=True, frozen=True)
class PostNormConfig(EncoderShape):
    """Shape and regularisation of encoders of BERT's layers; the defaults are those of the base size."""

    num_layers: int = 12
    """Transformer layers."""
    hidden_size: int = 768
    """Width of the hidden states."""
    num_attention_heads: int = 12
    """Attention heads; must divide the hidden size, and be a multiple of the tensor-parallel size."""
    ffn_hidden_size: int | None = None
    """Width of the feed-forward layers; default: four times the hidden size."""
    max_position_embeddings: int = 512
    """Longest sequence in tokens."""
    vocab_size: int = 30522
    """Entries of the vocabulary file."""
    hidden_dropout: float = 0.1
    """Share of hidden activations dropped in training."""
    attention_dropout: float = 0.1
    """Share of attention weights dropped in training."""
    layernorm_epsilon: float = 1e-12
    """Added to the variance in layer norms."""
    init_method_std: float = 0.02
    """Standard deviation of initial weights."""
    recompute_granularity: Literal["none", "full"] = "none"
    """full: keep only each layer's input for the backward pass and compute the layer again; less memory, more time."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"--num-attention-heads {self.num_attention_heads} does not divide --hidden-size {self.hidden_size}."
            )

    @property
    def ffn_size(self) -> int:
        """Width of the feed-forward layers."""
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def norm_epsilon(self) -> float:
        """See EncoderShape; as in the encoder's own."""
        return self.layernorm_epsilon

    @property
    def first_position(self) -> int:
        """Row of the position embeddings that the first token has."""
        return 0

    @property
    def num_segments(self) -> int:
        """Segment embeddings; 0: none."""
        return 0

    @property
    def max_positions(self) -> int:
        """See EncoderShape."""
        return self.max_position_embeddings - self.first_position


@dataclass(kw_only=True, frozen=True)
class BertConfig(PostNormConfig):
    """Shape and regularisation of a BERT encoder; the defaults are BERT-base, uncased."""

    num_tokentypes: int = 2
    """Segment embeddings; a text alone uses the first, a question with its passage the second as well."""

    @property
    def num_segments(self) -> int:
        """See PostNormConfig."""
        return self.num_tokentypes

    def build_encoder(self, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> BertEncoder:
        """See EncoderShape."""
        return BertEncoder(self, topology, dtype)


@dataclass(kw_only=True, frozen=True)
class UnigramBertConfig(BertConfig):
    """A BERT encoder with XLM-R's vocabulary, as small multilingual encoders have it; the defaults are multilingual
    MiniLM's (Wang et al. 2020, arXiv 2002.10957)."""

    vocab_size: int = 250037
    """Entries of the vocabulary file."""
    hidden_size: int = 384
    """Width of the hidden states."""


class BertEncoder(MegatronModule):
    """Token ids to hidden states.

    Parameters are sharded over `topology`'s tensor-parallel group; the caller initialises or loads them.
    """

    def __init__(self, config: PostNormConfig, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> None:
        engine = _engine_config(config, topology.tp_size, dtype)
        super().__init__(config=engine)
        self.bert_config = config
        self.embedding = BertEmbedding(config, engine, topology.groups)
        self.encoder = LayerStack(_layer(config, engine, topology.groups) for _ in range(config.num_layers))
        self.to(dtype)

    def forward(self, batch: TokenBatch, segments: Tensor | None = None, num_read: int | None = None) -> Tensor:
        """[B, T] ids -> [B, T, D] hidden states in the model's dtype; they are undefined at padding.

        Args:
            segments: [B, T] int64, index of the segment embedding of every token; default: 0.
            num_read: tokens, from the first on, whose states are wanted: [B, num_read, D]; default: all.
        """
        inputs = LayerInputs(self.attention_bias(batch), num_read=num_read)
        states: Tensor = self.encoder(self.embedding(batch.ids, segments), inputs)
        return states.transpose(0, 1)

    def first_states(self, batch: TokenBatch, segments: Tensor | None = None) -> Tensor:
        """See `encoder.first_states`."""
        states: Tensor = self(batch, segments, 1)
        return states[:, 0]

    def attention_bias(self, batch: TokenBatch) -> Tensor | None:
        """What is added to the attention's logits, broadcastable to [B, heads of this rank, T, T]."""
        return padding_bias(batch.lengths, batch.ids.size(1), self.config.params_dtype, batch.ids.device)


class BertEmbedding(nn.Module):
    """Sum of word, position and, where the family has them, segment embeddings, normalised: [B, T] ids -> [T, B, D]."""

    def __init__(self, config: PostNormConfig, engine: TransformerConfig, groups: ProcessGroupCollection) -> None:
        super().__init__()
        self.word_embeddings = word_embeddings(config.vocab_size, engine, groups)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.tokentype_embeddings = (
            nn.Embedding(config.num_segments, config.hidden_size) if config.num_segments else None
        )
        self.norm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.dropout = Dropout(config.hidden_dropout)
        self._offset = config.first_position

    def forward(self, ids: Tensor, segments: Tensor | None = None, first_position: int = 0) -> Tensor:
        """Embed.

        Args:
            first_position: position of the first column.

        Raises:
            ConfigError: a sequence is longer than the positions.
        """
        stop, num_positions = first_position + ids.size(1), self.position_embeddings.num_embeddings - self._offset
        if stop > num_positions:
            raise ConfigError(
                f"a sequence of {stop} tokens exceeds the encoder's {num_positions} positions "
                "(--max-position-embeddings); lower the sequence length."
            )
        words = self.word_embeddings(ids.t())
        positions = self.position_embeddings.weight[self._offset + first_position : self._offset + stop, None]
        if (table := self.tokentype_embeddings) is not None:
            # one of a single row tells no segments apart
            if segments is None or table.num_embeddings == 1:
                positions = positions + table.weight[0]
            else:
                segments = segments.t()
                positions = positions + (table.weight[segments] if is_deterministic() else table(segments))
        normalised: Tensor = self.dropout(self.norm(words + positions))
        return normalised


def _layer(config: PostNormConfig, engine: TransformerConfig, groups: ProcessGroupCollection) -> Layer:
    layer = transformer_layer(engine, groups, norm_place="after", recompute=config.recompute_granularity == "full")
    # linear_qkv comes last, as in megatron-core's attention: the gradient norm is summed in the order of parameters,
    # and its last bits depend on it
    attention = layer.get_submodule("self_attention")
    linear_qkv = attention.linear_qkv
    del attention.linear_qkv
    attention.linear_qkv = linear_qkv
    return layer


def _engine_config(config: PostNormConfig, tp_size: int, dtype: torch.dtype) -> TransformerConfig:
    return engine_config(
        tp_size=tp_size,
        dtype=dtype,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        ffn_hidden_size=config.ffn_size,
        hidden_dropout=config.hidden_dropout,
        attention_dropout=config.attention_dropout,
        layernorm_epsilon=config.layernorm_epsilon,
    )
