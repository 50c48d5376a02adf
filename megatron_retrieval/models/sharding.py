"""Sharding of parameters over tensor-parallel ranks: full tensors to shards and back.

A *full* tensor is the parameter of one process without padding: the form in which weights are initialised, imported,
exported and compared. Padding rows (see `mark_padded`) exist in shards only, and are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mark_padded(param: nn.Parameter, num_rows: int) -> None:
    """Record that only the first `num_rows` rows of the full `param` are real; the others are padding."""
    param.num_real_rows = num_rows  # type: ignore[attr-defined]


def full_shape(param: nn.Parameter, tp_size: int) -> torch.Size:
    """The shape of the full `param` at tensor-parallel size `tp_size`, without padding rows."""
    return torch.Size(full_sizes(param.shape, layout_of(param), tp_size))


def shard_of(full: Tensor, param: nn.Parameter, tp_rank: int, tp_size: int) -> Tensor:
    """The shard of `full` on rank `tp_rank` of `tp_size`.

    Args:
        full: the values of `param`, or another tensor of its layout (optimizer moments).
    """
    if full.shape != (expected := full_shape(param, tp_size)):
        raise ValueError(f"full tensor of shape {list(full.shape)} where {list(expected)} is needed")
    layout = layout_of(param)
    if (dim := layout.dim) is None:
        return full
    padding = param.size(dim) * tp_size - full.size(dim)
    if padding:
        full = F.pad(full, (0, 0) * (full.dim() - 1 - dim) + (0, padding))
    # a stride of s means s stacked matrices (gate and up projection), each sharded over the ranks
    pieces = full.chunk(tp_size * layout.stride, dim)[tp_rank::tp_size]
    return torch.cat(pieces, dim) if len(pieces) > 1 else pieces[0].contiguous()


@dataclass(frozen=True)
class ShardLayout:
    """The layout of a tensor's shards; written with them in checkpoints.

    Attributes:
        dim: the dimension that is sharded, None where every rank holds the full tensor.
        stride: number of stacked matrices, each sharded over the ranks.
        num_rows: real rows of the full tensor, None without padding.
    """

    dim: int | None = None
    stride: int = 1
    num_rows: int | None = None


def layout_of(param: nn.Parameter) -> ShardLayout:
    """The layout of `param`."""
    is_cut = getattr(param, "tensor_model_parallel", False)  # megatron-core's marks
    dim = int(param.partition_dim) if is_cut else None  # type: ignore[attr-defined]
    return ShardLayout(dim, int(getattr(param, "partition_stride", 1)), getattr(param, "num_real_rows", None))


def full_sizes(shard: torch.Size, layout: ShardLayout, tp_size: int) -> list[int]:
    """The shape of the full tensor of shards of this shape."""
    sizes = list(shard)
    if layout.dim is not None:
        sizes[layout.dim] *= tp_size
    if layout.num_rows is not None:
        sizes[0] = layout.num_rows
    return sizes


def places_in_full(num_slices: int, layout: ShardLayout, tp_rank: int, tp_size: int) -> Tensor:
    """[n] indices in the full tensor, with padding rows, of the n slices of a shard along the sharded dimension."""
    per_matrix = num_slices // layout.stride
    matrices = torch.arange(layout.stride)[:, None] * per_matrix * tp_size
    return (matrices + tp_rank * per_matrix + torch.arange(per_matrix)).flatten()


def join_shards(parts: list[Tensor], layout: ShardLayout) -> Tensor:
    """The full tensor from the shards of all tensor-parallel ranks, in rank order, without padding rows."""
    full = parts[0]
    if layout.dim is not None and len(parts) > 1:
        pieces = [part.chunk(layout.stride, layout.dim) for part in parts]
        full = torch.cat([piece[s] for s in range(layout.stride) for piece in pieces], layout.dim)
    return full if layout.num_rows is None else full[: layout.num_rows]
