"""megatron-core's parallel linear layers, with the bias added inside the matrix product where one rank holds all."""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import layers
from torch import Tensor
from torch.nn import functional as F

#: oneDNN's matrix product, otherwise reached through `torch.compile` only; None where PyTorch was built without it
_ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None, *, training: bool) -> Tensor:
    """`F.linear`: [..., D] -> [..., rows of `weight`].

    In float32 on CPU it goes through MKL, which leaves AMD's wide units alone; oneDNN takes less than half the time
    there, and has no gradient here. In half precision PyTorch calls oneDNN itself.

    Args:
        training: keep the kernel of a step that computes the same with and without gradients.
    """
    is_plain = training or torch.is_grad_enabled() or states.dtype != torch.float32 or states.device.type != "cpu"
    if is_plain or _ONEDNN_LINEAR is None:
        return F.linear(states, weight, bias)
    output: Tensor = _ONEDNN_LINEAR(states, weight, bias, "none", [], "")
    return output


class ColumnParallelLinear(layers.ColumnParallelLinear):
    """The parent adds the bias in a pass of its own, or leaves that to the next module: measurable on CPUs."""

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[..., D] -> [..., output size of this rank], and the bias where it is still to be added."""
        if self.tp_group.size() > 1 or weight is not None:
            output: tuple[Tensor, Tensor | None] = super().forward(input_, weight, runtime_gather_output)
            return output
        return linear(input_, self.weight, self.bias, training=self.training), None


class RowParallelLinear(layers.RowParallelLinear):
    """As `ColumnParallelLinear`, for weights cut along their input."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[..., D of this rank] -> [..., output size], and the bias where it is still to be added."""
        if self.tp_group.size() > 1:
            output: tuple[Tensor, Tensor | None] = super().forward(input_)
            return output
        return linear(input_, self.weight, self.bias, training=self.training), None
