"""The project's logger: information from rank 0 only, warnings from every rank with its number."""

from __future__ import annotations

import logging
import os
import sys

LOGGER_NAME = "megatron_retrieval"


class _RankFilter(logging.Filter):
    """Keeps information from rank 0 only; marks what other ranks say."""

    def filter(self, record: logging.LogRecord) -> bool:
        rank = int(os.environ.get("RANK", "0"))
        record.rank = f"[rank {rank}] " if rank else ""
        return rank == 0 or record.levelno >= logging.WARNING


def get_logger(name: str = "") -> logging.Logger:
    """The project's logger, or a child of it."""
    return logging.getLogger(f"{LOGGER_NAME}.{name}" if name else LOGGER_NAME)


def setup_logging(level: int = logging.INFO) -> None:
    """Send the project's log to standard error; called once by every entry point."""
    logger = get_logger()
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(rank)s%(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(_RankFilter())
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
