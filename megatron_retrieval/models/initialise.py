"""Initial weights that do not depend on the tensor-parallel size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from megatron_retrieval.models.sharding import full_shape, shard_of
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.seeds import derive_seed


@torch.no_grad()
def initialise_normal(
    module: nn.Module, topology: ProcessTopology, *, std: float | Callable[[str], float | Tensor], seed: int
) -> None:
    """Draw all matrices of `module` from N(0, std), each with a generator seeded by `seed` and its name.

    Vectors (biases, norms) keep their values. Full weights are drawn in fp32 and then sharded, so that a seed gives the
    same model at any tensor-parallel size and in any number format.

    Args:
        std: of all matrices, or a function from a matrix's name to a number or a [rows, 1] tensor for the full matrix.
    """
    for name, param in module.named_parameters():
        if param.dim() < 2:
            continue
        stream = torch.Generator().manual_seed(derive_seed(seed, "initial weights", name))
        full = torch.empty(full_shape(param, topology.tp_size))
        if callable(std):
            full.normal_(generator=stream).mul_(std(name))
        else:
            full.normal_(0, std, generator=stream)
        param.copy_(shard_of(full, param, topology.tp_rank, topology.tp_size))
