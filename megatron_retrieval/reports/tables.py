"""Plain-text tables for terminals and log files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their content; the first is flush left, the others (figures) flush right.

    Args:
        header: names of the columns.
        rows: cells; a float is shown as it is by `str`, so format it before.
    """
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    if len({len(row) for row in cells}) > 1:
        raise ValueError("all rows of a table need as many cells as its header")
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def percent(fraction: float) -> str:
    """0.8136 -> 81.4, as recall is published."""
    return f"{100 * fraction:.1f}"


def rate_cells(metrics: Mapping[str, Any], name: str) -> list[str]:
    """A rate in percent, and its 95 % interval."""
    low, high = metrics[f"{name}_ci95"]
    return [percent(metrics[name]), f"{percent(low)} - {percent(high)}"]
