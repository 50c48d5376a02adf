"""Full tensors out of shards, to compare layouts of ranks with one another."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_retrieval.models.sharding import join_shards, layout_of
from megatron_retrieval.parallel.topology import ProcessTopology


def gather_full(param: nn.Parameter, topology: ProcessTopology, values: Tensor | None = None) -> Tensor:
    """The full tensor, on every rank; all tensor-parallel ranks must call this together.

    Args:
        values: this rank's shard of something laid out like `param` (a gradient, an optimizer moment); default: the
            parameter itself.
    """
    values = (param if values is None else values).detach()
    layout = layout_of(param)
    if layout.dim is None or topology.tp_size == 1:
        return join_shards([values], layout)
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(topology.tp_size)]
    dist.all_gather(parts, values.contiguous(), group=topology.groups.tp)
    return join_shards(parts, layout)
