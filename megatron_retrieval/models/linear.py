"""megatron-core's parallel linear layers; on one rank the matrix product adds the bias.

Their matrix may be frozen in four bits a weight, and a low-rank adapter may stand beside it; see `adapters`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel import layers
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.models.gradient_buffer import adds_in_place, product
from megatron_retrieval.models.nf4 import Nf4Matrix
from megatron_retrieval.models.sharding import layout_of

#: oneDNN's matrix product, which PyTorch itself calls from `torch.compile` only; None in builds without oneDNN, and
#: where MKL's is faster
_ONEDNN_LINEAR = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    else None
)


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None, *, training: bool) -> Tensor:
    """`F.linear`: [..., D] -> [..., rows of `weight`].

    PyTorch uses MKL for float32 on CPU, which does not use AVX-512 on AMD; oneDNN takes less than half the time there
    (and a fifth more than MKL with AVX2), but this operator has no gradient. In half precision PyTorch calls oneDNN
    itself.

    Args:
        training: use `F.linear` also without gradients, so that both passes of gradient caching agree.
    """
    if training and torch.is_grad_enabled() and adds_in_place(weight) and (bias is None or adds_in_place(bias)):
        return product(states, weight, bias)
    is_plain = training or torch.is_grad_enabled() or states.dtype != torch.float32 or states.device.type != "cpu"
    if is_plain or _ONEDNN_LINEAR is None:
        return F.linear(states, weight, bias)
    output: Tensor = _ONEDNN_LINEAR(states, weight, bias, "none", [], "")
    return output


class ColumnParallelLinear(layers.ColumnParallelLinear):
    """The parent adds the bias in a separate pass, or leaves it to the next module, which is slower on CPUs.

    Args:
        parts: which matrices this one stands for, by their rows, see `row_parts`; default: itself.

    Attributes:
        layout: of the matrix's shards, of the shape `shard_shape`.
        nf4: takes the place of `weight`, which is None then.
        adapter: added to the output.
    """

    def __init__(self, *args: Any, parts: tuple[int, ...] | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.parts = parts or (self.output_size,)
        self.layout, self.shard_shape = layout_of(self.weight), self.weight.shape
        self.nf4: Nf4Matrix | None = None
        self.adapter: nn.Module | None = None

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[..., D] -> [..., output size of this rank], and the bias if it was not added."""
        if self.nf4 is not None:
            states = copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
            result: tuple[Tensor, Tensor | None] = _with_bias(_frozen_product(states, self.nf4), self.bias), None
        elif self.tp_group.size() > 1 or weight is not None:
            result = super().forward(input_, weight, runtime_gather_output)
        else:
            result = linear(input_, self.weight, self.bias, training=self.training), None
        return result if self.adapter is None else (self.adapter(input_, result[0]), result[1])


class RowParallelLinear(layers.RowParallelLinear):
    """As `ColumnParallelLinear`, for weights sharded along their input."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.parts: tuple[int, ...] = (self.output_size,)
        self.layout, self.shard_shape = layout_of(self.weight), self.weight.shape
        self.nf4: Nf4Matrix | None = None
        self.adapter: nn.Module | None = None

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[..., D of this rank] -> [..., output size], and the bias if it was not added."""
        if self.nf4 is not None:
            product = reduce_from_tensor_model_parallel_region(_frozen_product(input_, self.nf4), group=self.tp_group)
            result: tuple[Tensor, Tensor | None] = _with_bias(product, self.bias), None
        elif self.tp_group.size() > 1:
            result = super().forward(input_)
        else:
            result = linear(input_, self.weight, self.bias, training=self.training), None
        return result if self.adapter is None else (self.adapter(input_, result[0]), result[1])


ParallelLinear = ColumnParallelLinear | RowParallelLinear


class _FrozenProduct(torch.autograd.Function):
    """`F.linear` by a matrix that is read anew in both passes, so that neither keeps it."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, read: Callable[[torch.dtype], Tensor]) -> Tensor:
        ctx.read = read
        return F.linear(states, read(states.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0]
        return gradient @ ctx.read(gradient.dtype), None


def _frozen_product(states: Tensor, matrix: Nf4Matrix) -> Tensor:
    product: Tensor = _FrozenProduct.apply(states, matrix.read)
    return product


def _with_bias(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias
