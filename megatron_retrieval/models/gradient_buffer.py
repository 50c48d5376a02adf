"""Products and look-ups whose backward pass adds to a data-parallel model's gradient buffer itself.

Autograd makes the gradient of a matrix anew for every micro-batch, and that of word embeddings has a row for every word
of the vocabulary, before anything is added up. On a CPU both passes over memory count; a GPU's bandwidth hides them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def adds_in_place(parameter: Tensor) -> bool:
    """Whether the gradient of this parameter can be added to its buffer where it arises."""
    buffer: Tensor | None = getattr(parameter, "main_grad", None)
    is_there = parameter.requires_grad and buffer is not None
    return is_there and parameter.device.type == "cpu" and parameter.dtype == torch.float32


class _Product(torch.autograd.Function):
    """`F.linear` in float32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states)
        ctx.weight, ctx.bias = weight, bias
        return F.linear(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (states,), (gradient,) = ctx.saved_tensors, gradients
        rows = gradient.flatten(0, -2)
        ctx.weight.main_grad.addmm_(rows.t(), states.flatten(0, -2))
        if ctx.bias is not None:
            ctx.bias.main_grad.add_(rows.sum(0))
        return gradient @ ctx.weight if ctx.needs_input_grad[0] else None, None, None


class _LookUp(torch.autograd.Function):
    """`F.embedding`."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        (ids,), (gradient,), buffer = ctx.saved_tensors, gradients, ctx.weight.main_grad
        buffer.index_add_(0, ids.flatten(), gradient.flatten(0, -2))
        return None, None


def product(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`: [..., D] -> [..., rows of `weight`], all float32; of parameters that `adds_in_place`."""
    output: Tensor = _Product.apply(states, weight, bias)
    return output


def look_up(ids: Tensor, weight: Tensor) -> Tensor:
    """`F.embedding`: [...] int64 -> [..., D]; of a parameter that `adds_in_place`."""
    output: Tensor = _LookUp.apply(ids, weight)
    return output
