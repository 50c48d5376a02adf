"""Progress of long work: a live bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys

from tqdm import tqdm

TERMINAL_SECONDS, LOG_SECONDS = 0.2, 15.0


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
    return tqdm(
        total=total,
        desc=description,
        unit=f" {unit}",
        disable=not visible,
        unit_scale=scaled,
        smoothing=0.05,
        mininterval=TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
    )
