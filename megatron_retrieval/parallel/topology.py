"""Who this process is among all: built once at start, passed down as one object, never fetched from a global."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from torch._C._distributed_c10d import HashStore

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel import megatron_compat


@dataclass(kw_only=True, frozen=True)
class ParallelConfig:
    """Processes and devices."""

    tensor_model_parallel_size: int = 1
    """Ranks that share one copy of the model; the remaining factor of the world is data parallel."""
    distributed_timeout_minutes: float = 30.0
    """Minutes after which a collective that not all ranks reach is an error."""
    device: str | None = None
    """cpu or cuda; default: cuda where it is available."""


@dataclass(frozen=True)
class ProcessTopology:
    """This process's place: ranks, sizes, device and process groups.

    Tensor-parallel ranks are neighbours; `dp_rank` numbers the copies of the model.
    """

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    dp_rank: int
    dp_size: int
    device: torch.device
    groups: ProcessGroupCollection

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes shared files and speaks to the user."""
        return self.rank == 0

    @property
    def world_group(self) -> dist.ProcessGroup:
        group = dist.group.WORLD
        assert group is not None, "the topology has been shut down"
        return group

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


@contextlib.contextmanager
def process_topology(config: ParallelConfig) -> Iterator[ProcessTopology]:
    """Join the job that torchrun started, or be the single process of one, for the length of the block.

    Raises:
        ConfigError: the number of processes is not a multiple of the tensor-parallel size, or no such device.
    """
    device = _choose_device(config.device)
    world_size, tp_size = int(os.environ.get("WORLD_SIZE", "1")), config.tensor_model_parallel_size
    if tp_size < 1 or world_size % tp_size:
        raise ConfigError(
            f"--tensor-model-parallel-size {tp_size} does not divide the number of processes ({world_size}); "
            f"start with torchrun --nproc-per-node N where N is a multiple of {tp_size}."
        )
    _init_process_group(device, timedelta(minutes=config.distributed_timeout_minutes))
    megatron_compat.install(device)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp_size)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    topology = ProcessTopology(
        rank=dist.get_rank(),
        world_size=world_size,
        tp_rank=groups.tp.rank(),
        tp_size=tp_size,
        dp_rank=groups.dp.rank(),
        dp_size=groups.dp.size(),
        device=device,
        groups=groups,
    )
    megatron_compat.seed_dropout(0, topology.tp_rank)
    yield topology
    # Reached on success only: after an error the other ranks may never come to a barrier.
    topology.barrier()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _choose_device(name: str | None) -> torch.device:
    if name not in (None, "cpu", "cuda"):
        raise ConfigError(f"--device {name}: expected cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no CUDA device that torch can use.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _init_process_group(device: torch.device, timeout: timedelta) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
