"""How a parameter is spread over tensor-parallel ranks: cut a full tensor into shards, put shards together again.

A *full* tensor is what one process without padding would hold: the form in which weights are initialised, imported,
exported and compared. Padding rows (see `mark_padded`) exist in shards only, and are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.parallel.topology import ProcessTopology


def mark_padded(param: nn.Parameter, num_rows: int) -> None:
    """Remember that only the first `num_rows` rows of the full `param` are real."""
    param.num_real_rows = num_rows  # type: ignore[attr-defined]


def full_shape(param: nn.Parameter, tp_size: int) -> torch.Size:
    """The shape of `param` put together from `tp_size` shards, without padding rows."""
    sizes = list(param.shape)
    if _is_sharded(param):
        sizes[_partition_dim(param)] *= tp_size
    sizes[:1] = [_num_real_rows(param, sizes[0])] if sizes else []
    return torch.Size(sizes)


def shard_of(full: Tensor, param: nn.Parameter, tp_rank: int, tp_size: int) -> Tensor:
    """The part of `full` that rank `tp_rank` of `tp_size` holds in the place of `param`.

    Args:
        full: the parameter's values, or anything laid out like them (optimizer moments).
    """
    if full.shape != (expected := full_shape(param, tp_size)):
        raise ValueError(f"full tensor of shape {list(full.shape)} where {list(expected)} is needed")
    if not _is_sharded(param):
        return full
    dim = _partition_dim(param)
    padding = param.size(dim) * tp_size - full.size(dim)
    if padding:
        full = F.pad(full, (0, 0) * (full.dim() - 1 - dim) + (0, padding))
    # a stride of s means s stacked matrices (gate and up projection), each cut over the ranks
    pieces = full.chunk(tp_size * _stride(param), dim)[tp_rank::tp_size]
    return torch.cat(pieces, dim) if len(pieces) > 1 else pieces[0].contiguous()


def gather_full(param: nn.Parameter, topology: ProcessTopology, values: Tensor | None = None) -> Tensor:
    """The full tensor, on every rank; all tensor-parallel ranks must call this together.

    Args:
        values: this rank's shard of something laid out like `param` (a gradient, an optimizer moment); default: the
            parameter itself.
    """
    values = (param if values is None else values).detach()
    if _is_sharded(param) and topology.tp_size > 1:
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(topology.tp_size)]
        dist.all_gather(parts, values.contiguous(), group=topology.groups.tp)
        return join_shards(parts, layout_of(param))
    return join_shards([values], layout_of(param))


@dataclass(frozen=True)
class ShardLayout:
    """How the shards of one tensor make the full one; checkpoints write it beside the shards.

    Attributes:
        dim: the dimension that is cut over ranks, None where every rank holds all.
        stride: stacked matrices, each cut over the ranks.
        num_rows: real rows of the full tensor, None where none is padding.
    """

    dim: int | None = None
    stride: int = 1
    num_rows: int | None = None


def layout_of(param: nn.Parameter) -> ShardLayout:
    """The layout of `param`, and of anything laid out like it."""
    dim = _partition_dim(param) if _is_sharded(param) else None
    return ShardLayout(dim, _stride(param), getattr(param, "num_real_rows", None))


def join_shards(parts: list[Tensor], layout: ShardLayout) -> Tensor:
    """The full tensor from the shards of all tensor-parallel ranks, in rank order, without padding rows."""
    full = parts[0]
    if layout.dim is not None and len(parts) > 1:
        pieces = [part.chunk(layout.stride, layout.dim) for part in parts]
        full = torch.cat([piece[s] for s in range(layout.stride) for piece in pieces], layout.dim)
    return full if layout.num_rows is None else full[: layout.num_rows]


def _is_sharded(param: nn.Parameter) -> bool:
    return bool(getattr(param, "tensor_model_parallel", False))


def _partition_dim(param: nn.Parameter) -> int:
    return int(param.partition_dim)  # type: ignore[attr-defined]


def _stride(param: nn.Parameter) -> int:
    return int(getattr(param, "partition_stride", 1))


def _num_real_rows(param: nn.Parameter, num_rows: int) -> int:
    return int(getattr(param, "num_real_rows", num_rows))
