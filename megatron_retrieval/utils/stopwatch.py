"""Seconds spent on the parts of a repeated piece of work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class Stopwatch:
    """Adds up the time of each part: on CUDA the device's own, between events, so that the host need not wait.

    Args:
        parts: that may be timed.
    """

    def __init__(self, *parts: str, device: torch.device) -> None:
        self._seconds, self._is_cuda = dict.fromkeys(parts, 0.0), device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the block."""
        if self._is_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((part, begin, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds[part] += time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """By part, 0 for parts that never ran; waits once for the end of the last one."""
        if self._events:
            self._events[-1][2].synchronize()
        for part, begin, end in self._events:
            self._seconds[part] += begin.elapsed_time(end) / 1000
        self._events.clear()
        return dict(self._seconds)
