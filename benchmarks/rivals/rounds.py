"""Two programs or more that take turns: what a round took, and how much faster the first was than another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Literal

Clock = Literal["wall", "cpu"]
_CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def in_turns(sides: Sequence[Callable[[], object]], num_rounds: int, clock: Clock) -> list[list[float]]:
    """Seconds of each side in each round, [rounds, sides].

    Args:
        clock: wall, or cpu: seconds that the process spends, which other jobs change less.
    """
    return [[_seconds(side, _CLOCKS[clock]) for side in sides] for _ in range(num_rounds)]


def medians(seconds: Sequence[Sequence[float]]) -> list[float]:
    """Of each side."""
    return [statistics.median(column) for column in zip(*seconds, strict=True)]


def ratio_cells(seconds: Sequence[Sequence[float]]) -> list[str]:
    """By how much the first of two sides is faster: the median of rounds, and their range."""
    ratios = [theirs / ours for ours, theirs in seconds]
    return [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]


def _seconds(side: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    side()
    return clock() - start
