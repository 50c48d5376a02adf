"""Supervises the embedding process on a rank that does not train."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh.worker_supervisor import WorkerSupervisor
from megatron_retrieval.retrieval.index_versions import IndexVersions
from megatron_retrieval.utils.signals import StopSignal

#: between two checks of the worker, which ends by itself when this process does
LOOK_SECONDS = 1.0


def supervise_worker(
    command: Sequence[str], index_dir: str | Path, topology: ProcessTopology, *, timeout_seconds: float
) -> None:
    """Keep the worker of this rank running until training has ended for any reason.

    Args:
        command: see `worker_command`; its --num-workers is the number of embedding ranks.
        topology: of an embedding rank.
        timeout_seconds: see `WorkerSupervisor`.
    """
    assert topology.side_rank is not None
    assert topology.job is not None
    supervisor = WorkerSupervisor(
        command, IndexVersions(index_dir), topology.side_rank, topology.device, timeout_seconds=timeout_seconds
    )
    with StopSignal():  # the signal is for training ranks, which may need time to save
        try:
            while not topology.job.has_ended():
                supervisor.look()
                time.sleep(LOOK_SECONDS)
        finally:
            supervisor.stop()
