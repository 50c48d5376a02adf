"""The original BERT (layer norm after each residual sum) out of megatron-core's tensor-parallel parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.attention import ScaledDotProductAttention, padding_bias
from megatron_retrieval.models.engine import engine_config, word_embeddings
from megatron_retrieval.models.linear import ColumnParallelLinear, RowParallelLinear
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch


@dataclass(kw_only=True, frozen=True)
class BertConfig:
    """Shape and regularisation of a BERT encoder; the defaults are BERT-base, uncased."""

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
    num_tokentypes: int = 2
    """Segment embeddings; a text alone uses the first, a question with its passage the second as well."""
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


class BertEncoder(MegatronModule):
    """Token ids to hidden states.

    Parameters are laid out for `topology`'s tensor-parallel group; whoever builds the encoder initialises or loads
    them.
    """

    def __init__(self, config: BertConfig, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> None:
        engine = _engine_config(config, topology.tp_size, dtype)
        super().__init__(config=engine)
        self.bert_config = config
        self.embedding = BertEmbedding(config, engine, topology.groups)
        self.encoder = TransformerBlock(
            engine,
            TransformerBlockSubmodules([_layer_spec()] * config.num_layers, layer_norm=None),
            post_layer_norm=False,
            pg_collection=topology.groups,
        )
        self.to(dtype)

    def forward(self, batch: TokenBatch, segments: Tensor | None = None) -> Tensor:
        """[B, T] ids -> [B, T, D] hidden states in the model's dtype; those at padding positions mean nothing.

        Args:
            segments: [B, T] int64, the segment embedding of every token; default: the first of all.
        """
        bias = padding_bias(batch.lengths, batch.ids.size(1), self.config.params_dtype)
        return self.encoder(self.embedding(batch.ids, segments), attention_mask=bias).transpose(0, 1)


class BertEmbedding(nn.Module):
    """Sum of word, position and segment embeddings, normalised: [B, T] ids -> [T, B, D]."""

    def __init__(self, config: BertConfig, engine: TransformerConfig, groups: ProcessGroupCollection) -> None:
        super().__init__()
        self.word_embeddings = word_embeddings(config.vocab_size, engine, groups)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.tokentype_embeddings = nn.Embedding(config.num_tokentypes, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, ids: Tensor, segments: Tensor | None = None, first_position: int = 0) -> Tensor:
        """Embed.

        Args:
            first_position: of the first column.

        Raises:
            ConfigError: there are fewer positions than the sequences need.
        """
        stop, num_positions = first_position + ids.size(1), self.position_embeddings.num_embeddings
        if stop > num_positions:
            raise ConfigError(
                f"a sequence of {stop} tokens exceeds the encoder's {num_positions} positions "
                "(--max-position-embeddings); lower the sequence length."
            )
        words = self.word_embeddings(ids.t())
        positions = self.position_embeddings.weight[first_position:stop, None]
        if segments is None:
            positions = positions + self.tokentype_embeddings.weight[0]
        else:
            positions = positions + self.tokentype_embeddings(segments.t())
        normalised: Tensor = self.dropout(self.norm(words + positions))
        return normalised


class PostNormLayer(TransformerLayer):
    """megatron-core's layer with the norms after the residual sums, where BERT has them.

    `input_layernorm` follows the attention and `pre_mlp_layernorm` the feed-forward network; the names stay those of
    the parent, which builds them.
    """

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        fused = self.config.bias_dropout_fusion
        attended = self.self_attention(hidden_states, attention_mask=attention_mask)
        summed = self.self_attn_bda(self.training, fused)(attended, hidden_states, self.hidden_dropout)
        hidden_states = self.input_layernorm(summed)
        summed = self.mlp_bda(self.training, fused)(self.mlp(hidden_states), hidden_states, self.hidden_dropout)
        return self.pre_mlp_layernorm(summed), None


def _layer_spec() -> ModuleSpec:
    attention = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=ScaledDotProductAttention,
        linear_proj=RowParallelLinear,
    )
    return ModuleSpec(
        module=PostNormLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=ModuleSpec(
                module=SelfAttention, params={"attn_mask_type": AttnMaskType.padding}, submodules=attention
            ),
            self_attn_bda=get_bias_dropout_add,
            input_layernorm=WrappedTorchNorm,
            mlp=ModuleSpec(
                module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
            ),
            mlp_bda=get_bias_dropout_add,
            pre_mlp_layernorm=WrappedTorchNorm,
        ),
    )


def _engine_config(config: BertConfig, tp_size: int, dtype: torch.dtype) -> TransformerConfig:
    recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
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
        **(recompute if config.recompute_granularity == "full" else {}),
    )
