"""How programs start: quickly, and where one process of a job fails, all end and its error is what the user sees."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from programs import command, run, run_cold

PROGRAM = '''
import os, signal, torch
from dataclasses import dataclass, field
from torch.distributed.distributed_c10d import _world
from megatron_retrieval.errors import DataError
from megatron_retrieval.parallel.launch import run_distributed
from megatron_retrieval.parallel.topology import ParallelConfig

@dataclass(kw_only=True, frozen=True)
class Job:
    """A job in which rank 1 cannot read its file, or stops."""

    stops: bool = False
    """Stop instead."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

def main(config, topology):
    groups = [group._get_backend(torch.device("cpu")).options for group in _world.pg_map]
    if topology.rank == 0:
        print(*{options._timeout.total_seconds() for options in groups})
    topology.barrier()
    if topology.rank == 1:
        if config.stops:
            os.kill(os.getpid(), signal.SIGSTOP)
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


def test_a_rank_that_is_stopped_ends_the_job_in_time(tmp_path: Path) -> None:
    """The others wait as long as they were told to, and say for whom."""
    program = tmp_path / "job.py"
    program.write_text(PROGRAM)
    result = run(command(program, "--stops", "--distributed-timeout-minutes", "0.05", num_processes=3))
    assert result.returncode != 0
    assert result.stdout == "3.0\n", "no group waits longer"
    sentences = {line for line in result.stderr.splitlines() if line.startswith("error: ")}
    assert sentences == {
        "error: rank 1 does not answer any more: killed, stopped, or without a network. The others waited for at most "
        "0.05 minutes (--distributed-timeout-minutes)."
    }


@pytest.mark.parametrize("words", [("tasks/main.py",), ("-m", "megatron_retrieval")], ids=["tasks", "console script"])
def test_help_without_a_task_needs_no_torch(words: tuple[str, ...]) -> None:
    first, *rest = command(*words, "--help")
    result = run_cold([first, "-X", "importtime", *rest])
    assert result.returncode == 0, result.stderr
    assert "--help" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not {"torch", "numpy", "tyro"} & imported


#: shows the help of verbs, and what was imported for all of them
HELP = """
import contextlib, sys
from megatron_retrieval.cli import main

for words in (["train", "retriever"], ["evaluate", "reader"], ["embed"], ["search"]):
    with contextlib.suppress(SystemExit):
        main([*words, "--help"])
print("imported:", *sys.modules)
"""


def test_programs_import_what_they_use(tmp_path: Path) -> None:
    """Each of these takes as long as everything of our own."""
    program = tmp_path / "help.py"
    program.write_text(HELP)
    result = run_cold(command(program))
    assert result.returncode == 0, result.stderr
    shown, _, imported = result.stdout.rpartition("imported: ")
    assert shown.count("usage: ") == 4
    assert {"torch", "megatron.core"} <= set(imported.split())
    assert not {"sympy", "scipy", "tensorboard", "transformers", "torch._dynamo"} & set(imported.split())


def test_what_was_hidden_from_megatron_core_can_be_imported(tmp_path: Path) -> None:
    program = tmp_path / "job.py"
    program.write_text(
        "import megatron_retrieval.parallel, torch.distributed.checkpoint.default_planner as planner\n"
        "import torch.utils.cpp_extension, torch.distributed.tensor\n"
        "assert planner.DefaultSavePlanner and torch.utils.cpp_extension.load and torch.distributed.tensor.DTensor\n"
    )
    result = run_cold(command(program))
    assert result.returncode == 0, result.stderr
