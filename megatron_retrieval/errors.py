"""Errors that a person can act on: what is wrong, where, and what to do.

Raise one of these wherever the cause lies outside the program (a file, a flag, a checkpoint). Entry points print
the message alone and end with `EXIT_CODE`; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path

EXIT_CODE = 1


class MegatronRetrievalError(Exception):
    """Base of every error whose message is meant for the user."""


class ConfigError(MegatronRetrievalError):
    """A flag, a YAML key or a combination of settings cannot be used."""


class DataError(MegatronRetrievalError):
    """An input file is missing, malformed or cut off.

    Args:
        path: the file at fault.
        problem: what is wrong, without a full stop.
        line: 1-based line (or record) number, where known.
        hint: what the user can do about it.
    """

    def __init__(self, path: str | Path, problem: str, *, line: int | None = None, hint: str = "") -> None:
        self.path, self.problem, self.line = Path(path), problem, line
        where = f"{path}:{line}" if line is not None else str(path)
        super().__init__(f"{where}: {problem}." + (f" {hint}" if hint else ""))


class DiskError(MegatronRetrievalError):
    """A file cannot be written: the disk is full, read-only or failing. What can be continued is kept."""


class CheckpointError(MegatronRetrievalError):
    """A checkpoint is missing, damaged, or does not fit the model that asks for it."""


class MismatchError(MegatronRetrievalError):
    """Two artefacts that must belong together (evidence, encoder, embeddings) do not."""


class StoppedError(MegatronRetrievalError):
    """A stop signal ended long work before it was done; the same command continues it."""


class LostRankError(MegatronRetrievalError):
    """Another rank of the job has ended or does not answer any more."""


class DivergenceError(MegatronRetrievalError):
    """The loss or a gradient is not finite."""


class RunDivergedError(DivergenceError):
    """A training run cannot go on; all ranks raise it after the same step."""
