"""megatron-core's parallel linear layers, with the bias added inside the matrix product where one rank holds all."""

from __future__ import annotations

from megatron.core.tensor_parallel import layers
from torch import Tensor
from torch.nn import functional as F


class ColumnParallelLinear(layers.ColumnParallelLinear):
    """The parent adds the bias in a pass of its own, or leaves that to the next module: measurable on CPUs."""

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[..., D] -> [..., output size of this rank], and the bias where it is still to be added."""
        if self.tp_group.size() > 1 or weight is not None:
            output: tuple[Tensor, Tensor | None] = super().forward(input_, weight, runtime_gather_output)
            return output
        return F.linear(input_, self.weight, self.bias), None


class RowParallelLinear(layers.RowParallelLinear):
    """As `ColumnParallelLinear`, for weights cut along their input."""

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[..., D of this rank] -> [..., output size], and the bias where it is still to be added."""
        if self.tp_group.size() > 1:
            output: tuple[Tensor, Tensor | None] = super().forward(input_)
            return output
        return F.linear(input_, self.weight, self.bias), None
