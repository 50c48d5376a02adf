"""The project's logger: information from rank 0 only, warnings from every rank with its number."""

from __future__ import annotations

import logging
import sys

LOGGER_NAME = "megatron_retrieval"


class _RankFilter(logging.Filter):
    """Keeps information from rank 0 only; marks what other ranks say."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        record.rank = f"[rank {self._rank}] " if self._rank else ""
        return self._rank == 0 or record.levelno >= logging.WARNING


def get_logger(name: str = "") -> logging.Logger:
    """The project's logger, or a child of it."""
    return logging.getLogger(f"{LOGGER_NAME}.{name}" if name else LOGGER_NAME)


def setup_logging(rank: int) -> None:
    """Send the project's log to standard error; called once by every entry point.

    Args:
        rank: of this process in its job.
    """
    logger = get_logger()
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(rank)s%(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(_RankFilter(rank))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
