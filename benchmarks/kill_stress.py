"""Building and embedding evidence, killed at random moments and started again until the result is there.

It must be, byte for byte, that of work which nobody interrupted. Every start takes another number of processes by
chance; a kill is SIGKILL to all of them.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import MegatronRetrievalError, MismatchError
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.utils.files import read_json
from megatron_retrieval.utils.manifest import MANIFEST
from megatron_retrieval.utils.progress import progress_bar

ROOT = Path(__file__).parents[1]
#: a start is let alone after so many kills of one folder: most of a short run is its start, which a kill wastes
MAX_KILLS_OF_ONE = 8
#: what tells of the work, not of its result
RECORDS = {"config.yaml", "run_record.json"}
#: on one thread each: a product of matrices is rounded otherwise on more
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass(kw_only=True, frozen=True)
class KillStressConfig(Checked):
    """Kill the building and the embedding of evidence at random moments, and compare what they resume to."""

    input: Path
    """Passage file (psgs_w100.tsv or JSON lines)."""
    retriever: Path
    """Checkpoint of the dual encoder."""
    vocab_file: Path
    """Its vocabulary."""
    num_kills: PositiveInt = 100
    """Kills in all, over both jobs."""
    max_processes: PositiveInt = 2
    """Processes of a start are between one and so many."""
    micro_batch_size: int = 32
    """Passages embedded at once."""
    rows_per_shard: int = 512
    """Passages per file of the embeddings."""
    seed: int = 0
    """Of the moments and the numbers of processes."""


class Job:
    """A program that makes a folder.

    Args:
        words: the program and its flags, but for --output.
        parallel: the flag that takes a number of processes, of a program that does not touch a finished folder; None:
            torchrun starts them, and a finished folder is left as it is.
    """

    def __init__(self, name: str, words: list[object], output: Path, parallel: str | None) -> None:
        self.name, self.output = name, output
        self._words, self._parallel = [str(word) for word in words], parallel
        self._is_built = parallel is not None
        self.num_kills = self.num_results = 0

    def make_reference(self) -> None:
        """Let it run to its end, and keep how long that takes."""
        started = time.monotonic()
        _require_success(self._start(self.output, 1), self.output)
        self.seconds = time.monotonic() - started

    def make_again(self, folder: Path, random_: random.Random, max_processes: int, kills_left: int) -> int:
        """Make the folder anew under kills, and compare; returns how often it was killed."""
        kills = 0
        while not (self._is_built and (folder / MANIFEST).exists()):  # killed when all was done
            process = self._start(folder, random_.randint(1, max_processes))
            if kills == min(kills_left, MAX_KILLS_OF_ONE) or _ends_within(process, random_.uniform(0, self.seconds)):
                _require_success(process, folder)
                break
            _kill(process)
            kills += 1
        _require_equal(self.output, folder)
        self.num_kills, self.num_results = self.num_kills + kills, self.num_results + 1
        return kills

    def _start(self, folder: Path, num_processes: int) -> subprocess.Popen[bytes]:
        words = [*self._words, "--output", str(folder)]
        launcher = [sys.executable]
        if self._parallel is not None:
            words += [self._parallel, str(num_processes)]
        elif num_processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
        with open(folder.with_name(f"{folder.name}.log"), "a", encoding="utf-8") as log:
            return subprocess.Popen([*launcher, *words], cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log)


def main(config: KillStressConfig) -> None:
    random_ = random.Random(config.seed)
    with tempfile.TemporaryDirectory() as name, progress_bar("kills", "kills", config.num_kills) as progress:
        folder = Path(name)
        jobs = _jobs(config, folder)
        for job in jobs:
            job.make_reference()
        number = 0
        while progress.n < config.num_kills:
            job, number = jobs[number % len(jobs)], number + 1
            again = folder / f"{job.name}-{number}"
            progress.update(job.make_again(again, random_, config.max_processes, config.num_kills - int(progress.n)))
    rows = [[job.name, str(job.num_results), str(job.num_kills)] for job in jobs]
    sys.stdout.write(text_table(["", "results, all equal", "kills"], rows) + "\n")


def _jobs(config: KillStressConfig, folder: Path) -> tuple[Job, Job]:
    evidence = folder / "evidence"
    build = ["tools/build_evidence.py", "--input", config.input, "--vocab-file", config.vocab_file]
    embed = ["tools/embed_evidence.py", "--evidence", evidence, "--retriever", config.retriever]
    embed += ["--micro-batch-size", config.micro_batch_size, "--rows-per-shard", config.rows_per_shard]
    return Job("build", build, evidence, "--workers"), Job("embed", embed, folder / "embeddings", None)


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The program and all that it started, at once."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family)
    process.wait()


def _require_success(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.wait():
        said = folder.with_name(f"{folder.name}.log").read_text(encoding="utf-8")[-2000:]
        raise MegatronRetrievalError(f"The program for {folder} ended with status {process.returncode}:\n{said}")


def _require_equal(whole: Path, resumed: Path) -> None:
    """Raises MismatchError: a file of the two folders differs, beyond when it was made."""
    names, others = ({file.name for file in folder.iterdir()} - RECORDS for folder in (whole, resumed))
    if names != others:
        raise MismatchError(f"{resumed} does not hold the files of {whole}: {sorted(names ^ others)}.")
    for name in names:
        if not _is_same(whole / name, resumed / name):
            raise MismatchError(f"{resumed / name} differs from {whole / name}.")


def _is_same(path: Path, other: Path) -> bool:
    if path.name == MANIFEST:
        return _timeless(path) == _timeless(other)
    return filecmp.cmp(path, other, shallow=False)


def _timeless(manifest: Path) -> dict[str, Any]:
    return {name: value for name, value in read_json(manifest).items() if name != "created"}


if __name__ == "__main__":
    run_program(KillStressConfig, main)
