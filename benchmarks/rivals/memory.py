"""The memory that some work takes, as Linux counts it for the process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def resident_mib(key: str = "VmRSS") -> float:
    """MiB that this process holds; `VmHWM`: that it held at most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def forget_peak() -> None:
    """Count `VmHWM` from here."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib(work: Callable[[], object]) -> float:
    """MiB that the work takes above what the process holds before it."""
    before = resident_mib()
    forget_peak()
    work()
    return resident_mib("VmHWM") - before
