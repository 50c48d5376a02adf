"""megatron-core's parallel linear layers; on one rank the matrix product adds the bias."""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import layers
from torch import Tensor
from torch.nn import functional as F

#: oneDNN's matrix product, which PyTorch itself calls from `torch.compile` only; None in builds without oneDNN
_ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None, *, training: bool) -> Tensor:
    """`F.linear`: [..., D] -> [..., rows of `weight`].

    PyTorch uses MKL for float32 on CPU, which does not use AVX-512 on AMD; oneDNN takes less than half the time there,
    but this operator has no gradient. In half precision PyTorch calls oneDNN itself.

    Args:
        training: use `F.linear` also without gradients, so that both passes of gradient caching agree.
    """
    is_plain = training or torch.is_grad_enabled() or states.dtype != torch.float32 or states.device.type != "cpu"
    if is_plain or _ONEDNN_LINEAR is None:
        return F.linear(states, weight, bias)
    output: Tensor = _ONEDNN_LINEAR(states, weight, bias, "none", [], "")
    return output


class ColumnParallelLinear(layers.ColumnParallelLinear):
    """The parent adds the bias in a separate pass, or leaves it to the next module, which is slower on CPUs."""

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[..., D] -> [..., output size of this rank], and the bias if it was not added."""
        if self.tp_group.size() > 1 or weight is not None:
            output: tuple[Tensor, Tensor | None] = super().forward(input_, weight, runtime_gather_output)
            return output
        return linear(input_, self.weight, self.bias, training=self.training), None


class RowParallelLinear(layers.RowParallelLinear):
    """As `ColumnParallelLinear`, for weights sharded along their input."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[..., D of this rank] -> [..., output size], and the bias if it was not added."""
        if self.tp_group.size() > 1:
            output: tuple[Tensor, Tensor | None] = super().forward(input_)
            return output
        return linear(input_, self.weight, self.bias, training=self.training), None
