"""The ranks, sizes, device and groups of this process: built once at start and passed down as one object."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from torch._C._distributed_c10d import HashStore, Store

from megatron_retrieval.config.checks import Checked, NonNegativeInt
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel import megatron_compat
from megatron_retrieval.parallel.determinism import deterministic_algorithms
from megatron_retrieval.parallel.job import Job
from megatron_retrieval.parallel.lost_ranks import naming_lost_ranks


@dataclass(kw_only=True, frozen=True)
class ParallelConfig:
    """Processes and devices."""

    tensor_model_parallel_size: int = 1
    """Ranks that share one copy of the model; the remaining factor of the world is data parallel."""
    distributed_timeout_minutes: float = 30.0
    """Minutes that a collective waits for all ranks before it fails."""
    device: str | None = None
    """cpu or cuda; default: cuda where it is available."""
    deterministic_mode: bool = False
    """Add in a fixed order on GPUs, which takes more time: on one kind of machine, with the same ranks and versions, a
    run then repeats to the bit. On CPU it does so in any case."""

    @property
    def num_side_ranks(self) -> int:
        """The number of last ranks of the job that do not train."""
        return 0


@dataclass(kw_only=True, frozen=True)
class EmbeddingRanksConfig(ParallelConfig, Checked):
    """Processes and devices, some of which embed the evidence while the others train."""

    num_embedding_ranks: NonNegativeInt = 0
    """Number of last ranks that embed the evidence for the next index while the others train."""

    @property
    def num_side_ranks(self) -> int:
        """See ParallelConfig."""
        return self.num_embedding_ranks


@dataclass(frozen=True)
class ProcessTopology:
    """This process's place: ranks, sizes, device and process groups.

    Tensor-parallel ranks are neighbours; `dp_rank` numbers the copies of the model.

    Attributes:
        side_rank: number (from 0) of a rank that does not train, a world of its own; None for training ranks.
        job: tells side ranks whether training has ended; None where there are no side ranks.
    """

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    dp_rank: int
    dp_size: int
    device: torch.device
    groups: ProcessGroupCollection
    side_rank: int | None = None
    job: Job | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes shared files and logs to the user."""
        return self.rank == 0 and self.side_rank is None

    @property
    def world_group(self) -> dist.ProcessGroup:
        group = dist.group.WORLD
        assert group is not None, "the topology has been shut down"
        return group

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def standing_topology(device: str | None = None) -> ProcessTopology:
    """The topology of this process: the one that is open, or else one that is formed now and lasts until its end.

    For the use of the package as a library; programs open `process_topology`.

    Args:
        device: see ParallelConfig.

    Raises:
        ConfigError: it was formed on another device.
    """
    if _open is None:
        context = contextlib.ExitStack()
        context.enter_context(process_topology(ParallelConfig(device=device)))
        atexit.register(context.close)
    assert _open is not None
    if device is not None and _open.device.type != torch.device(device).type:
        raise ConfigError(f"this process computes on {_open.device.type} already; --device {device} needs another one.")
    return _open


#: of this process, while it is open
_open: ProcessTopology | None = None


@contextlib.contextmanager
def process_topology(config: ParallelConfig) -> Iterator[ProcessTopology]:
    """Join the job that torchrun started, or form a job of one process, for the duration of the block.

    Raises:
        ConfigError: the number of processes is not a multiple of the tensor-parallel size, or no such device.
        LostRankError: another rank has ended, or did not answer in time.
    """
    device = _choose_device(config.device)
    timeout = timedelta(minutes=config.distributed_timeout_minutes)
    rank, tp_size = int(os.environ.get("RANK", "0")), config.tensor_model_parallel_size
    world_size = _world_size(config)
    job = Job.join(timeout) if config.num_side_ranks else None
    side_rank = rank - world_size if rank >= world_size else None
    if side_rank is not None:
        rank, world_size, tp_size = 0, 1, 1
    backend, store = "nccl" if device.type == "cuda" else "gloo", _choose_store(job, side_rank)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    megatron_compat.install(device)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tp_size,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=config.distributed_timeout_minutes,
    )
    groups = ProcessGroupCollection.use_mpu_process_groups()
    topology = ProcessTopology(
        rank=rank,
        world_size=world_size,
        tp_rank=groups.tp.rank(),
        tp_size=tp_size,
        dp_rank=groups.dp.rank(),
        dp_size=groups.dp.size(),
        device=device,
        groups=groups,
        side_rank=side_rank,
        job=job,
    )
    megatron_compat.seed_dropout(0, topology.tp_rank)
    training = contextlib.nullcontext() if job is None or side_rank is not None else job.training(rank)
    naming = naming_lost_ranks(rank, world_size, config.distributed_timeout_minutes)
    with training, naming, deterministic_algorithms(config.deterministic_mode), _opened(topology):
        yield topology
        # Reached on success only: after an error the other ranks may never come to a barrier.
        topology.barrier()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@contextlib.contextmanager
def _opened(topology: ProcessTopology) -> Iterator[None]:
    global _open
    _open = topology
    try:
        yield
    finally:
        _open = None


def _world_size(config: ParallelConfig) -> int:
    """The number of training ranks."""
    job_size, tp_size = int(os.environ.get("WORLD_SIZE", "1")), config.tensor_model_parallel_size
    world_size = job_size - config.num_side_ranks
    beside = f" beside {config.num_side_ranks} that embed" if config.num_side_ranks else ""
    if world_size < 1 or tp_size < 1 or world_size % tp_size:
        raise ConfigError(
            f"--tensor-model-parallel-size {tp_size} does not divide the number of processes ({world_size}{beside}); "
            f"start with torchrun --nproc-per-node N where N is a multiple of {tp_size}"
            + (f", plus {config.num_side_ranks}." if beside else ".")
        )
    return world_size


def _choose_device(name: str | None) -> torch.device:
    if name not in (None, "cpu", "cuda"):
        raise ConfigError(f"--device {name}: expected cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no CUDA device that torch can use.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank, num_devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if num_devices > 1 and local_rank >= num_devices:
        raise ConfigError(
            f"this machine has {num_devices} CUDA devices, but runs at least {local_rank + 1} processes; start one "
            "process a device."
        )
    # a launcher that binds a device to each process shows it that one alone
    device = torch.device("cuda", local_rank if num_devices > 1 else 0)
    torch.cuda.set_device(device)
    return device


def _choose_store(job: Job | None, side_rank: int | None) -> Store | None:
    """The store of the process group; None: torchrun's."""
    if job is not None and side_rank is None:
        return job.store
    return HashStore() if side_rank is not None or "RANK" not in os.environ else None
