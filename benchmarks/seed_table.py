"""A table of runs that differ in their seed alone: the mean of each measure over the seeds, with its 95 % interval."""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.utils.files import read_json

#: Student's t at 97.5 %, by degrees of freedom
T_VALUES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(kw_only=True, frozen=True)
class SeedTableConfig:
    """Put runs side by side that differ in their seed alone."""

    runs: tuple[Path, ...]
    """Folders named NAME-SEED, each with the metrics.json of a training run; in the order of the table."""
    measures: tuple[str, ...] = ("valid_recall@1", "valid_recall@5", "valid_exact_match")
    """What is shown, rates in percent."""


def main(config: SeedTableConfig) -> None:
    groups: dict[str, list[Path]] = {}
    for folder in config.runs:
        groups.setdefault(folder.name.rpartition("-")[0], []).append(folder)
    if "" in groups:
        raise ConfigError(f"--runs {groups[''][0]}: expected a folder named NAME-SEED.")
    rows = [[name, str(len(folders)), *_cells(folders, config.measures)] for name, folders in groups.items()]
    sys.stdout.write(text_table(["%, mean and 95 % interval", "seeds", *config.measures], rows) + "\n")


def _cells(folders: list[Path], measures: tuple[str, ...]) -> list[str]:
    metrics = [(folder / "metrics.json", read_json(folder / "metrics.json")) for folder in folders]
    for path, values in metrics:
        if missing := [measure for measure in measures if measure not in values]:
            raise DataError(path, f"there is no {missing[0]!r}")
    return [_cell([100 * float(values[measure]) for _, values in metrics]) for measure in measures]


def _cell(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) - 1 not in T_VALUES:
        return f"{mean:.1f}"
    half = T_VALUES[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.1f} +- {half:.1f}"


if __name__ == "__main__":
    run_program(SeedTableConfig, main)
