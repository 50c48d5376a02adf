"""Runs the checks of `gpu/gpu_checks.py` one after the other, each in a process and within a time of its own.

A check that fails, or takes too long, does not stop the others. The output is written anew after each of them.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from megatron_retrieval.config.checks import Checked
from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.utils.files import read_json, write_json

BENCHMARKS = Path(__file__).parent
#: seconds that each check may take; less than nine minutes together
LIMITS = {
    "parity": 70,
    "attention": 45,
    "kernel": 55,
    "nccl": 30,
    "resume": 110,
    "search": 80,
    "embedding": 50,
    "dpr_step": 45,
    "t5_step": 50,
}
#: lines of what a failed check said that are kept
LINES_KEPT = 20


@dataclass(kw_only=True, frozen=True)
class GpuCheckConfig(Checked):
    """Check and time everything that depends on the device."""

    output: Path
    """JSON file of all figures and failures."""
    device: Literal["cuda", "cpu"] = "cuda"
    """What is checked; on cpu the checks check themselves."""
    tiny: bool = False
    """Small models and few vectors; speeds then mean nothing."""
    only: tuple[str, ...] = ()
    """Checks to run; default: all."""


def main(config: GpuCheckConfig) -> None:
    report: dict[str, Any] = {"machine": _machine(), "device": config.device, "tiny": config.tiny, "checks": {}}
    for name, limit in LIMITS.items():
        if config.only and name not in config.only:
            continue
        found = _run(name, limit, config)
        report["checks"][name] = found
        write_json(config.output, report)
        sys.stdout.write(f"{name}: {'passed' if found['passed'] else 'FAILED'} in {found['seconds']} s\n")
        sys.stdout.flush()
    failed = [name for name, found in report["checks"].items() if not found["passed"]]
    if failed:
        raise MismatchError(f"{', '.join(failed)} failed; {config.output} says why.")


def _run(name: str, limit: float, config: GpuCheckConfig) -> dict[str, Any]:
    """A check in a process of its own."""
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        words = [sys.executable, str(BENCHMARKS / "gpu" / "gpu_checks.py"), "--check", name, "--folder", folder]
        words += ["--device", config.device, *(["--tiny"] if config.tiny else [])]
        paths = [str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            words,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said = f"{process.communicate()[0]}\nended after its limit of {limit} seconds"
        found: dict[str, Any] = {
            "passed": process.returncode == 0,
            "seconds": round(time.perf_counter() - started, 1),
            "figures": read_json(figures) if figures.exists() else {},
        }
    if not found["passed"]:
        found["said"] = said.splitlines()[-LINES_KEPT:]
    return found


def _machine() -> dict[str, Any]:
    has_gpu = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "capability": torch.cuda.get_device_capability() if has_gpu else None,
    }


if __name__ == "__main__":
    run_program(GpuCheckConfig, main)
