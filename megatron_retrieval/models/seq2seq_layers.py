"""Layers of encoder-decoders, with the norms where T5 or BERT has them, out of megatron-core's tensor-parallel
matrices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar

import torch
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.models.engine import leave_uninitialised
from megatron_retrieval.models.linear import ColumnParallelLinear, RowParallelLinear
from megatron_retrieval.models.score_attention import ScoreForm
from megatron_retrieval.models.seq2seq_attention import CrossAttention, DecoderCache, LayerCache, SelfAttention


class FeedForward(nn.Module):
    """Two matrices with an activation between them; where gated, the first holds the gate's rows and then those that
    it multiplies.

    Args:
        dropout: share of the units between the matrices that is dropped in training.
    """

    def __init__(self, config: TransformerConfig, groups: ProcessGroupCollection, dropout: float) -> None:
        super().__init__()
        self.is_gated, self.activation = config.gated_linear_unit, config.activation_func
        self.dropout = dropout
        num_parts = 2 if self.is_gated else 1
        self.linear_fc1 = ColumnParallelLinear(
            config.hidden_size,
            num_parts * config.ffn_hidden_size,
            config=config,
            init_method=leave_uninitialised,
            bias=config.add_bias_linear,
            stride=num_parts,
            tp_group=groups.tp,
        )
        self.linear_fc2 = RowParallelLinear(
            config.ffn_hidden_size,
            config.hidden_size,
            config=config,
            init_method=leave_uninitialised,
            bias=config.add_bias_linear,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=groups.tp,
        )

    def forward(self, states: Tensor) -> Tensor:
        """[T, B, D] -> [T, B, D]."""
        inner = self.linear_fc1(states)[0]
        if self.is_gated:
            gate, inner = inner.chunk(2, -1)
            inner = self.activation(gate) * inner
        else:
            inner = self.activation(inner)
        if self.training and self.dropout:
            # each rank holds units of its own, hence draws from the stream that differs between tensor-parallel ranks
            with tensor_parallel.get_cuda_rng_tracker().fork():
                inner = F.dropout(inner, self.dropout)
        output: Tensor = self.linear_fc2(inner)[0]
        return output


class Seq2SeqLayer(nn.Module, ABC):
    """Self-attention, in decoders cross-attention, and a feed-forward network, each with a norm and a residual sum.

    Args:
        config: with the kinds of norm and activation, and whether matrices have biases.
    """

    #: whether units inside the feed-forward network are dropped in training
    drops_inside: ClassVar[bool]

    def __init__(
        self, config: TransformerConfig, groups: ProcessGroupCollection, layer_number: int, *, is_decoder: bool
    ) -> None:
        super().__init__()
        self.input_layernorm = norm(config)
        self.self_attention = SelfAttention(config, groups, layer_number)
        self.pre_cross_attn_layernorm = norm(config) if is_decoder else None
        self.cross_attention = CrossAttention(config, groups, layer_number) if is_decoder else None
        self.pre_mlp_layernorm = norm(config)
        self.mlp = FeedForward(config, groups, config.hidden_dropout if self.drops_inside else 0.0)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        states: Tensor,
        bias: Tensor | None,
        memory: Tensor | None = None,
        memory_bias: Tensor | None = None,
        cache: LayerCache | None = None,
        form: ScoreForm = "mask",
    ) -> Tensor:
        """[T, B, D] -> [T, B, D]; the other arguments are those of `SelfAttention` and `CrossAttention`."""
        attention, cross_attention = self.self_attention, self.cross_attention
        states = self._add(states, self.input_layernorm, lambda inner: attention(inner, bias, cache))
        if cross_attention is not None and self.pre_cross_attn_layernorm is not None:
            states = self._add(
                states,
                self.pre_cross_attn_layernorm,
                lambda inner: cross_attention(inner, memory, memory_bias, cache, form),
            )
        return self._add(states, self.pre_mlp_layernorm, self.mlp)

    @abstractmethod
    def _add(self, states: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        """The states with what `part` makes of them, and the norm in its place."""


class PreNormLayer(Seq2SeqLayer):
    """Each part reads normed states; T5's."""

    drops_inside = True

    def _add(self, states: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        return states + self.dropout(part(norm(states)))


class PostNormDecoderLayer(Seq2SeqLayer):
    """Each residual sum is normed; BERT's. The names of the norms stay: each stands with the part that follows it in
    `PreNormLayer`."""

    drops_inside = False

    def _add(self, states: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        output: Tensor = norm(states + self.dropout(part(states)))
        return output


def norm(config: TransformerConfig) -> nn.Module:
    """A norm of the configured kind over hidden states."""
    module: nn.Module = WrappedTorchNorm(config, config.hidden_size, config.layernorm_epsilon)
    return module


def run_layers(
    layers: Iterable[nn.Module],
    states: Tensor,
    bias: Tensor | None,
    memory: Tensor | None = None,
    memory_bias: Tensor | None = None,
    *,
    cache: DecoderCache | None = None,
    form: ScoreForm = "mask",
    recompute: bool = False,
) -> Tensor:
    """One layer after the other; the tensors are those of `Seq2SeqLayer`.

    Args:
        recompute: keep only what enters each layer, and compute the layer again in the backward pass.
    """
    if recompute and torch.is_grad_enabled():
        for layer in layers:
            # all that needs a gradient goes through the arguments: what the function closes over would be
            # differentiated once for every layer
            states = tensor_parallel.checkpoint(partial(layer, form=form), False, states, bias, memory, memory_bias)
        return states
    for number, layer in enumerate(layers):
        states = layer(states, bias, memory, memory_bias, None if cache is None else cache.layers[number], form)
    return states
