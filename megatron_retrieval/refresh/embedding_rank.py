"""What a rank does that does not train: it looks after a process that embeds, as long as the others train."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh.worker_supervisor import WorkerSupervisor
from megatron_retrieval.retrieval.index_versions import IndexVersions
from megatron_retrieval.training.signals import StopSignal

#: between two looks at the worker, which notices by itself when this process ends
LOOK_SECONDS = 1.0


def supervise_worker(
    command: Sequence[str], index_dir: str | Path, topology: ProcessTopology, *, timeout_seconds: float
) -> None:
    """Keep the worker of this rank running until training has ended, in whatever way.

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
    with StopSignal():  # it is for those that train, and may have much to save
        try:
            while not topology.job.has_ended():
                supervisor.look()
                time.sleep(LOOK_SECONDS)
        finally:
            supervisor.stop()
