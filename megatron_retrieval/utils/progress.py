"""Progress of long work: a live bar on a terminal, a line now and then in a log file; one or several stages."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

TERMINAL_SECONDS, LOG_SECONDS = 0.2, 15.0


class Stages:
    """Work in several stages: within one, every bar says its number and, beside its own time left, that of all.

    How long a stage takes is guessed beforehand, in seconds; what the finished ones took corrects the guesses for
    those to come.

    Args:
        names: of the stages, in their order; a stage may be left out.

    Attributes:
        names: as given.
        seconds: that each finished stage took.
    """

    def __init__(self, *names: str) -> None:
        self.names, self._guessed = names, dict.fromkeys(names, 0.0)
        self.seconds: dict[str, float] = {}
        self._current, self._started = "", 0.0

    def guess(self, **seconds: float) -> None:
        """Say how long stages may take; stages that are not named keep their guess."""
        self._guessed |= seconds

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The bars of the block belong to this stage."""
        global _stages
        before, _stages = _stages, self
        self._current, self._started = name, time.monotonic()
        try:
            yield
            self.seconds[name] = round(time.monotonic() - self._started, 3)
        finally:
            _stages = before

    @property
    def title(self) -> str:
        """Number and name of the stage."""
        return f"{self.names.index(self._current) + 1}/{len(self.names)} {self._current}"

    def seconds_left(self, of_bar: float | None) -> float:
        """Of all stages.

        Args:
            of_bar: seconds left of the work that the current bar shows, if known.
        """
        known = [name for name in self.seconds if self._guessed[name]]
        guessed = sum(self._guessed[name] for name in known)
        pace = sum(self.seconds[name] for name in known) / guessed if guessed else 1.0
        coming = sum(self._guessed[name] for name in self.names[self.names.index(self._current) + 1 :]) * pace
        in_this = self._guessed[self._current] * pace - (time.monotonic() - self._started)
        return coming + (max(0.0, in_this) if of_bar is None else of_bar)


#: whose stage is running in this process
_stages: Stages | None = None


class _Bar(tqdm):
    """A bar of a stage, which says what is left of all."""

    stages: Stages

    @property
    def format_dict(self) -> dict[str, Any]:
        values = dict(super().format_dict)
        elapsed, total = values["elapsed"], values["total"]
        rate = values["rate"] or (self.n / elapsed if elapsed else 0)
        of_bar = (total - self.n) / rate if total and rate else None
        return values | {"postfix": f"all: {tqdm.format_interval(self.stages.seconds_left(of_bar))} left"}


def progress_bar(
    description: str, unit: str, total: int | None = None, *, visible: bool = True, scaled: bool = False
) -> tqdm:
    """A bar on standard error with rate and time left.

    Args:
        unit: what is counted, in the plural.
        total: where the work ends, if known.
        visible: False for ranks other than the first.
        scaled: count in k, M and G.
    """
    settings: dict[str, Any] = {
        "total": total,
        "desc": description,
        "unit": f" {unit}",
        "disable": not visible,
        "unit_scale": scaled,
        "smoothing": 0.05,
        "mininterval": TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
    }
    if _stages is None:
        return tqdm(**settings)
    _Bar.stages = _stages  # the library asks for it while the bar is made
    return _Bar(**{**settings, "desc": f"{_stages.title}: {description}"})


def is_staged() -> bool:
    """Whether a stage is running, which shows what is done elsewhere too."""
    return _stages is not None
