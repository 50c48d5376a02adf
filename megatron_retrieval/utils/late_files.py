"""Files that another process has just written: a network file system may show them late."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from megatron_retrieval.errors import CheckpointError, DataError

Value = TypeVar("Value")

#: network file systems cache what is not there for up to a minute
PATIENCE_SECONDS = 120.0
LOOK_SECONDS = 0.5


def seen_late(look: Callable[[], Value]) -> Value:
    """What `look` returns, which reads files that are known to be whole; it is called again while it does not see them.

    Raises:
        CheckpointError, DataError: of `look`, if it raises one for too long.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return look()
        except (CheckpointError, DataError):
            if time.monotonic() > deadline:
                raise
        time.sleep(LOOK_SECONDS)
