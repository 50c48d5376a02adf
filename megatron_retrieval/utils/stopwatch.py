"""Seconds spent on the parts of a repeated piece of work."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class Stopwatch:
    """Adds up the time of each part; on CUDA each part ends with a synchronisation.

    Attributes:
        seconds: by part, 0 for parts that never ran.
    """

    def __init__(self, *parts: str, device: torch.device) -> None:
        self.seconds, self._device = dict.fromkeys(parts, 0.0), device

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the block."""
        started = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[part] += time.perf_counter() - started
