"""Run one function in several gloo processes and get every rank's result back."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore
from torch.multiprocessing.spawn import start_processes

from megatron_retrieval.parallel.topology import EmbeddingRanksConfig, ParallelConfig, process_topology


def run_on_ranks(
    function: Callable[..., Any],
    num_ranks: int,
    *args: Any,
    tensor_model_parallel_size: int = 1,
    num_embedding_ranks: int = 0,
) -> list[Any]:
    """Call `function(topology, *args)` in `num_ranks` processes over gloo.

    Args:
        function: importable at top level of its module; what it returns travels through `torch.save` and may hold
            tensors, numbers, strings, lists and dictionaries.
        num_ranks: processes; 1 also runs in a process of its own, so that tests cannot disturb one another.
        num_embedding_ranks: of these processes, the last ones.

    Returns:
        What the ranks returned, in rank order.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the first failing rank's traceback.
    """
    # Kept here, as torchrun keeps its own: a free port that rank 0 were to open might be taken by then.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with TemporaryDirectory() as folder:
        config = EmbeddingRanksConfig(
            tensor_model_parallel_size=tensor_model_parallel_size, num_embedding_ranks=num_embedding_ranks, device="cpu"
        )
        warm_fork_server()
        start_processes(
            _worker, (function, num_ranks, store.port, config, folder, args), num_ranks, start_method="forkserver"
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(num_ranks)]


def warm_fork_server() -> ForkServerContext:
    """The context whose processes are forked from one that has imported the package: once for all tests, not once for
    every process. To be called before anything else starts a fork server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "megatron_retrieval.testing.preload"])
    return context


def rank_environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets for a rank, with a store that somebody else keeps at `port`."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _worker(
    rank: int,
    function: Callable[..., Any],
    num_ranks: int,
    port: int,
    config: ParallelConfig,
    folder: str,
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ.update(rank_environment(rank, num_ranks, port))
    with process_topology(config) as topology:
        result = function(topology, *args)
    torch.save(result, Path(folder) / f"{rank}.pt")
