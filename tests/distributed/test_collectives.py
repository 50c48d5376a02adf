"""Collectives give the single process's values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region

from megatron_retrieval.errors import ConfigError, DataError, MegatronRetrievalError
from megatron_retrieval.parallel.collectives import (
    add_up,
    any_rank,
    broadcast_first,
    gather_objects,
    gather_rows_with_grad,
    on_first_rank,
)
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks


def _gradient_through_gather(topology: ProcessTopology) -> torch.Tensor:
    rows = torch.arange(8.0).view(4, 2).tensor_split(topology.dp_size)[topology.dp_rank].requires_grad_()
    gathered = gather_rows_with_grad(rows, topology.groups.dp)
    # each rank's loss covers its own rows against all: their sum is the single process's loss
    (rows.exp() @ gathered.square().t()).sum().backward()
    assert rows.grad is not None
    return rows.grad


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_gather_gradient_equals_single_process(num_ranks: int) -> None:
    (single,) = run_on_ranks(_gradient_through_gather, 1)
    torch.testing.assert_close(torch.cat(run_on_ranks(_gradient_through_gather, num_ranks)), single)


def _gradient_of_non_contiguous(topology: ProcessTopology) -> torch.Tensor:
    values = torch.ones(3, 4, requires_grad=True)
    # the gradient of a sum is an expanded tensor, which is not contiguous
    (copy_to_tensor_model_parallel_region(values).sum() * (topology.tp_rank + 1)).backward()
    assert values.grad is not None
    return values.grad


def test_reduce_of_non_contiguous_gradient() -> None:
    """megatron-core 0.16 returned the unreduced gradient here."""
    for gradient in run_on_ranks(_gradient_of_non_contiguous, 2, tensor_model_parallel_size=2):
        torch.testing.assert_close(gradient, torch.full((3, 4), 3.0))


def _sums(topology: ProcessTopology) -> list[torch.Tensor]:
    """By `add_up`, and by the backend's own collective."""
    found, random = list[torch.Tensor](), torch.Generator().manual_seed(topology.rank)
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        for shape in ((), (3, 1), (257, 129)):
            values = torch.randn(shape, generator=random).mul(1000).to(dtype)
            expected = values.clone()
            add_up(values, topology.world_group)
            dist.all_reduce(expected)
            found += [values, expected]
    return found


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_sums_are_those_of_the_backend(num_ranks: int) -> None:
    """To the bit, and the same on all ranks."""
    first, *others = run_on_ranks(_sums, num_ranks)
    assert all(mine.equal(backends) for mine, backends in zip(first[::2], first[1::2], strict=True))
    for other in others:
        assert all(map(torch.equal, first, other))


def _objects(topology: ProcessTopology) -> list[object]:
    group = topology.world_group
    return [
        gather_objects(f"rank {topology.rank}", group),
        any_rank(topology.rank == 1, group, topology.device),
        any_rank(False, group, topology.device),
        int(broadcast_first(torch.tensor(topology.rank), topology.groups.tp)),
    ]


def test_objects_flags_and_values_reach_all_ranks() -> None:
    """Of the whole world, or of a group that rank 0 does not belong to."""
    names = [f"rank {rank}" for rank in range(4)]
    found = run_on_ranks(_objects, 4, tensor_model_parallel_size=2)
    assert found == [[names, True, False, first] for first in (0, 0, 2, 2)]


def _refused(topology: ProcessTopology) -> list[object]:
    said: list[object] = [on_first_rank(lambda: topology.rank + 7, topology.world_group)]
    for error in (ConfigError("no"), DataError("file", "is empty", line=3)):

        def work(error: MegatronRetrievalError = error) -> None:
            raise error

        try:
            on_first_rank(work, topology.world_group)
        except MegatronRetrievalError as raised:
            said += [type(raised).__name__, str(raised)]
    return said


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_what_the_first_rank_refuses_all_refuse(num_ranks: int) -> None:
    errors = ["ConfigError", "no", "DataError", "file:3: is empty."]
    assert run_on_ranks(_refused, num_ranks) == [[7, *errors], [None, *errors]][:num_ranks]
