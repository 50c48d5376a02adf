"""Processes of a job: one that fails ends them all, and its error is what the user sees."""

from __future__ import annotations

import time
from pathlib import Path

from programs import command, run_cold

PROGRAM = '''
from dataclasses import dataclass, field
from megatron_retrieval.errors import DataError
from megatron_retrieval.parallel.launch import run_distributed
from megatron_retrieval.parallel.topology import ParallelConfig

@dataclass(kw_only=True, frozen=True)
class Job:
    """A job in which rank 1 cannot read its file."""

    parallel: ParallelConfig = field(default_factory=ParallelConfig)

def main(config, topology):
    if topology.rank == 1:
        raise DataError("part1.tsv", "not UTF-8", line=7)
    topology.barrier()

if __name__ == "__main__":
    run_distributed(Job, main)
'''


def test_one_failing_rank_ends_the_job(tmp_path: Path) -> None:
    program = tmp_path / "job.py"
    program.write_text(PROGRAM)
    started = time.monotonic()
    result = run_cold(command(program, num_processes=2))
    assert result.returncode != 0
    assert "part1.tsv:7: not UTF-8." in result.stderr
    assert "rank      : 1" in result.stderr  # torchrun names the first process that failed
    assert time.monotonic() - started < 200  # the other rank's barrier would wait for half an hour
