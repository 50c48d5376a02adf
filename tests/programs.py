"""Programs as users run them: under python or torchrun, killed and resumed, refused.

They are forked from a warm process; `run_cold` starts one in earnest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from megatron_retrieval.testing.warm_start import TORCHRUN, WarmProgram

ROOT = Path(__file__).parents[1]
#: ends what hangs; on a busy machine a program of seconds takes minutes
PATIENCE_SECONDS = 900
NOWHERE = Path(os.devnull)
#: one thread each, as under torchrun: on more, products of matrices are rounded otherwise
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
_started: list[WarmProgram] = []


def command(*words: object, num_processes: int = 1) -> list[str]:
    """The program `words` under python or torchrun."""
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += [*TORCHRUN, str(num_processes)]
    return [*launcher, *map(str, words)]


def run(words: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run to the end, whatever it is."""
    with TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        program = start(words, *files, cwd=cwd)
        try:
            status = program.wait(PATIENCE_SECONDS)
        finally:
            if program.poll() is None:
                program.kill()
        return subprocess.CompletedProcess(words, status, *(file.read_text() for file in files))


def run_cold(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run to the end in a process that has imported nothing, as users start it."""
    return subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def succeed(words: list[str]) -> str:
    """Run to the end; returns what the program logged."""
    result = run(words)
    assert result.returncode == 0, result.stderr
    return result.stderr


def refuse(words: list[str], message: str) -> None:
    """The program ends with one sentence that holds `message`."""
    result = run(words)
    assert result.returncode == 1, result.stderr
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def start(words: list[str], stdout: Path = NOWHERE, stderr: Path = NOWHERE, cwd: Path = ROOT) -> WarmProgram:
    """In the background; what it prints is appended to files."""
    _started.append(WarmProgram(words[1:], cwd=cwd, env=ENVIRONMENT, stdout=stdout, stderr=stderr))
    return _started[-1]


def end_started() -> None:
    """Kill what a test that failed has left running."""
    while _started:
        if (program := _started.pop()).poll() is None:
            program.kill()


def wait_for_step(output: Path, step: int, process: WarmProgram) -> None:
    """Return once the run that writes to `output` has logged `step`."""
    metrics, deadline = output / "metrics.jsonl", time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be interrupted"
        if metrics.exists() and metrics.read_text().count("\n") >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"no step {step} within {PATIENCE_SECONDS} seconds")


def kill_at(step: int, words: list[str], output: Path) -> None:
    """Start the run, and kill it as soon as it has logged `step`."""
    process = start(words)
    try:
        wait_for_step(output, step, process)
    finally:
        process.kill()
        process.wait()


def losses(output: Path) -> list[tuple[int, float]]:
    """Iteration and loss of every step that a run logged."""
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [(record["iteration"], record["loss"]) for record in records if "loss" in record]
