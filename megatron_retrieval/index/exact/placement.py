"""Where the vectors of an index stand while they are searched: in memory, or on disk."""

from __future__ import annotations

import os
from typing import Literal

import psutil  # type: ignore[import-untyped]

Placement = Literal["auto", "memory", "disk"]

#: share of the free memory that the indexes of a machine's processes take together, unless told otherwise
_SHARE_OF_MEMORY = 0.5


def fits_in_memory(num_bytes: int, placement: Placement) -> bool:
    """Whether a copy of vectors of that size is to be kept, here and by every other process on this machine."""
    if placement != "auto":
        return placement == "memory"
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    available: int = psutil.virtual_memory().available
    return num_bytes * processes <= _SHARE_OF_MEMORY * available
