"""Processes of a job: one that fails ends them all, and its error is what the user sees."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

PROGRAM = '''
from dataclasses import dataclass, field
from megatron_retrieval.errors import DataError
from megatron_retrieval.parallel import ParallelConfig, run_distributed

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
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    started = time.monotonic()
    result = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert result.returncode != 0
    assert "part1.tsv:7: not UTF-8." in result.stderr
    assert "rank      : 1" in result.stderr  # torchrun names the first process that failed
    assert time.monotonic() - started < 200  # the other rank's barrier would wait for half an hour
