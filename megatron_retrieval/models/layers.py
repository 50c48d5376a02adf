"""Layers as lists of residual parts, and the transformer layers of T5 and BERT."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_retrieval.models.dropout import Dropout
from megatron_retrieval.models.feed_forward import FeedForward
from megatron_retrieval.models.layer_inputs import LayerInputs
from megatron_retrieval.models.multi_head_attention import CrossAttention, SelfAttention

NormPlace = Literal["before", "after"]

#: names in checkpoints; BERT's norms have the same ones although they follow their part
NORM_NAMES = {
    "self_attention": "input_layernorm",
    "cross_attention": "pre_cross_attn_layernorm",
    "mlp": "pre_mlp_layernorm",
}

ALL_PARTS = slice(None)


@dataclass(frozen=True)
class Part:
    """A module of a layer, with a norm and a residual sum.

    Attributes:
        name: of the module within the layer and in checkpoints; `norm_name` likewise.
        module: takes the hidden states [L, R, D] and `LayerInputs`, and returns [L, R, D].
        place: of the norm: before the module (T5) or after the residual sum (BERT).
    """

    name: str
    module: nn.Module
    norm_name: str
    norm: nn.Module
    place: NormPlace


class Layer(nn.Module):
    """Residual parts, one after the other.

    Args:
        dropout: share of each module's outputs dropped in training.
        recompute: in training, keep only the inputs of the layer and compute it again in the backward pass.
    """

    def __init__(self, parts: Iterable[Part], *, dropout: float, recompute: bool = False) -> None:
        super().__init__()
        self.parts: list[Part] = []
        for place, part in enumerate(parts):
            self.insert(place, part)
        self.dropout = Dropout(dropout)
        self._recompute = recompute

    def insert(self, place: int, part: Part) -> None:
        """Put a part before the one that has been at this place."""
        self.parts.insert(place, part)
        self.add_module(part.norm_name, part.norm)
        self.add_module(part.name, part.module)

    def forward(self, states: Tensor, inputs: LayerInputs, chosen: slice = ALL_PARTS) -> Tensor:
        """[L, R, D] hidden states -> [L, R, D]; of `num_read` positions, where `inputs` names so many.

        Args:
            chosen: which parts are computed, by their places.
        """
        if not (self._recompute and self.training and torch.is_grad_enabled() and inputs.cache is None):
            return self._run(states, inputs, chosen)

        if not states.requires_grad:  # of frozen embeddings: without a gradient in, what is trained inside gets none
            states = states.detach().requires_grad_()

        def run(states: Tensor, *tensors: Tensor | None) -> Tensor:
            return self._run(states, inputs.with_tensors(tensors), chosen)

        # tensors that need a gradient are arguments: the graph of a closed-over one would be traversed once per layer
        output: Tensor = tensor_parallel.checkpoint(run, False, states, *inputs.tensors)
        return output

    def _run(self, states: Tensor, inputs: LayerInputs, chosen: slice) -> Tensor:
        num_read = inputs.num_read
        for part in self.parts[chosen]:
            if part.place == "before":
                states = states[:num_read] + self.dropout(part.module(part.norm(states), inputs))
            else:
                states = part.norm(states[:num_read] + self.dropout(part.module(states, inputs)))
        return states


class LayerStack(nn.Module):
    """Layers, one after the other."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, states: Tensor, inputs: LayerInputs) -> Tensor:
        """[L, R, D] hidden states -> [L, R, D], or [num_read, R, D]: what nobody reads the last layer leaves out."""
        *before, last = self.layers
        of_all = inputs if inputs.num_read is None else replace(inputs, num_read=None)
        for layer in before:
            states = layer(states, of_all)
        output: Tensor = last(states, inputs)
        return output


def transformer_layer(
    config: TransformerConfig,
    groups: ProcessGroupCollection,
    *,
    norm_place: NormPlace,
    inner_dropout: float = 0.0,
    is_decoder: bool = False,
    recompute: bool = False,
) -> Layer:
    """Self-attention, in decoders cross-attention, and a feed-forward network.

    Args:
        config: with the kinds of norm and activation, and whether matrices have biases.
        inner_dropout: share of the units inside the feed-forward network dropped in training.
    """
    modules: dict[str, nn.Module] = {"self_attention": SelfAttention(config, groups)}
    if is_decoder:
        modules["cross_attention"] = CrossAttention(config, groups)
    modules["mlp"] = FeedForward(config, groups, inner_dropout)
    parts = [Part(name, module, NORM_NAMES[name], norm(config), norm_place) for name, module in modules.items()]
    return Layer(parts, dropout=config.hidden_dropout, recompute=recompute)


def norm(config: TransformerConfig) -> nn.Module:
    """A norm of the configured kind over hidden states."""
    module: nn.Module = WrappedTorchNorm(config, config.hidden_size, config.layernorm_epsilon)
    return module
