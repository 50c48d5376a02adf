"""Bytes and seconds, for people."""

from __future__ import annotations

GB = 10**9


def size(num_bytes: float) -> str:
    """32279537664 -> 32.3 GB; powers of 1000, as disks are sold."""
    for unit, factor in (("GB", GB), ("MB", 10**6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes / 1000:.1f} kB"


def duration(seconds: float) -> str:
    """5400 -> 1.5 hours."""
    for unit, length in (("hours", 3600.0), ("minutes", 60.0), ("s", 1.0)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{1000 * seconds:.1f} ms"
