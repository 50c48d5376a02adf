"""First weights of what reads neighbours, copied from the model that is to read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def copy_self_attention(decoder: nn.ModuleList, encoder: nn.ModuleList, others: Iterable[nn.Module]) -> None:
    """Let attention to neighbours begin as the self-attention of its layer, and the encoder as the first layers.

    The states of a memory are normed once for all that read them; what their norm multiplies them by is put into the
    matrix of keys and values.

    Args:
        decoder: all layers; those with cross-attention get its weights.
        encoder: of neighbours.
        others: norms of memories, which multiply by 1.
    """
    for module in others:
        for parameter in module.parameters():
            parameter.fill_(1.0)
    for own, source in zip(encoder, decoder, strict=False):
        for name in ("self_attention", "input_layernorm", "mlp", "pre_mlp_layernorm"):
            _copy(own.get_submodule(name), source.get_submodule(name))
    for layer in (*decoder, *encoder):
        if hasattr(layer, "cross_attention"):
            _copy_attention(layer)


def _copy_attention(layer: Any) -> None:
    source, target, scale = layer.self_attention, layer.cross_attention, layer.input_layernorm.weight
    width = source.head_width
    # each group: its queries, a key, a value
    grouped = source.linear_qkv.weight.unflatten(0, (-1, source.heads_per_group, width))
    target.linear_q.weight.copy_(grouped[:, :-2].flatten(0, 2))
    target.linear_kv.weight.copy_(grouped[:, -2:].flatten(0, 2) * scale)
    target.linear_proj.weight.copy_(source.linear_proj.weight)
    layer.pre_cross_attn_layernorm.weight.copy_(scale)


def _copy(target: nn.Module, source: nn.Module) -> None:
    values = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        parameter.copy_(values[name])
