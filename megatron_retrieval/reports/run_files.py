"""What a run left in its folder: the record, metrics at its end, metrics on its way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.errors import DataError
from megatron_retrieval.evaluation.predictions import PREDICTIONS
from megatron_retrieval.evaluation.retrieval_results import METRICS, RANKS
from megatron_retrieval.training.run_record import RUN_RECORD
from megatron_retrieval.utils.files import read_json

CURVES = "metrics.jsonl"
_INTERVAL = "_ci95"


@dataclass(frozen=True)
class Curve:
    """A metric on the way: [n] iterations, ascending, and [n] values."""

    iterations: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A training run or an evaluation.

    Attributes:
        name: the end of its folder's path, as long as tells it from the others.
        record: of run_record.json; empty where there is none yet.
        metrics: of metrics.json; empty where there are none.
        curves: by the metric's name.
    """

    folder: Path
    name: str
    record: dict[str, Any]
    metrics: dict[str, Any]
    curves: dict[str, Curve]

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved configuration by flag."""
        return dict(self.record.get("config", {}))

    @property
    def has_questions(self) -> bool:
        """Whether it tells of each question how it went."""
        return any((self.folder / name).exists() for name in (RANKS, PREDICTIONS))

    @property
    def is_judged(self) -> bool:
        """Whether its `recall@k` is the share of relevant passages; that of others is by answers."""
        return "num_judged_questions" in self.metrics

    def rates(self) -> dict[str, tuple[float, float, float]]:
        """(mean, low, high) of every metric that has an interval."""
        names = (name.removesuffix(_INTERVAL) for name in self.metrics if name.endswith(_INTERVAL))
        return {name: (self.metrics[name], *self.metrics[name + _INTERVAL]) for name in names if name in self.metrics}


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the small files of each run.

    Raises:
        DataError: a folder holds none of them, or one is malformed.
    """
    return [_open(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _open(folder: Path, name: str) -> Run:
    files = [folder / file for file in (RUN_RECORD, METRICS, CURVES)]
    if not any(file.exists() for file in files):
        problem = f"holds none of {', '.join(file.name for file in files)}"
        raise DataError(folder, problem, hint="Give the --output-dir of a training run or of an evaluation.")
    record, metrics = (read_json(file) if file.exists() else {} for file in files[:2])
    for file, content in zip(files, (record, metrics), strict=False):
        if not isinstance(content, dict):
            raise DataError(file, "is no JSON object")
    return Run(folder, name, record, metrics, _curves(files[2]) if files[2].exists() else {})


def _curves(path: Path) -> dict[str, Curve]:
    """Curves of metrics.jsonl; the last line may still be being written."""
    points: dict[str, list[tuple[int, float]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            iteration = int(record.pop("iteration"))
            values = {name: float(value) for name, value in record.items() if value is not None}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise DataError(path, "not a line of metrics", line=number) from error
        for name, value in values.items():
            points.setdefault(name, []).append((iteration, value))
    return {name: Curve(*map(np.array, zip(*curve, strict=True))) for name, curve in points.items()}


def _names(folders: Sequence[Path]) -> list[str]:
    """As few last parts of the paths as tell them apart; numbered where even the whole ones do not."""
    parts = [folder.resolve().parts[1:] for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {'/'.join(own[-1:])}" for number, own in enumerate(parts, 1)]
