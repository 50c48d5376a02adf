"""What a run was made with, written beside its results so that a figure can be traced and made again."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

import megatron_retrieval
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.parallel import machine
from megatron_retrieval.utils.files import write_json

RUN_RECORD = "run_record.json"
PACKAGES = ("torch", "megatron-core", "numpy", "transformers", "tokenizers", "safetensors", "tyro", "triton")
#: parts that make training faster where they are installed, and are never required
ACCELERATORS = ("transformer_engine", "apex", "triton")


class RunRecord:
    """Collects what describes a run, from its start to `write`.

    Args:
        config: the job's configuration.
        world_size: number of processes.
    """

    def __init__(self, config: Any, world_size: int = 1) -> None:
        self._config, self._world_size = config, world_size
        self._start = time.monotonic()
        # the code that runs is that of the start, whatever is committed meanwhile
        self._git = git_state(Path(megatron_retrieval.__file__).parent)
        self._started = datetime.datetime.now(datetime.UTC)

    def to_dict(self) -> dict[str, Any]:
        """The record, with the seconds so far."""
        return {
            "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
            "config": to_flat_dict(self._config),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._start, 3),
            "world_size": self._world_size,
            "versions": versions(),
            "accelerators": accelerators(),
            "hardware": hardware(),
            "git": self._git,
        }

    def write(self, output_dir: str | Path, **results: Any) -> Path:
        """Write `run_record.json` into `output_dir`, with further `results` if given; for one rank."""
        path = Path(output_dir) / RUN_RECORD
        write_json(path, {**self.to_dict(), **_plain(results)})
        return path


def versions() -> dict[str, str | None]:
    """Versions of Python, this package and those that it computes with; None where one is not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "megatron-retrieval": megatron_retrieval.__version__,
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["cuda"] = torch.version.cuda
    return found


def accelerators() -> dict[str, bool]:
    """Which of the optional parts are installed."""
    return {name: importlib.util.find_spec(name) is not None for name in ACCELERATORS}


def hardware() -> dict[str, Any]:
    """Processor, memory, GPUs, and what the device is fast in."""
    return {
        "cpu": _cpu_name(),
        "memory_bytes": psutil.virtual_memory().total,
        "platform": platform.platform(),
        **machine.compute(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the source and whether files differ from it; None for an installed package or without git."""
    try:
        # Fails where a repository happens to surround an installed package without tracking it.
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    """`value` in types that JSON has; anything else as its text (paths, above all)."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
