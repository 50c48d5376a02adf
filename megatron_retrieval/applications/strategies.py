"""A table and a picture of strategies that were trained and evaluated alike."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.reports.strategies import as_json, markdown, picture, read_strategies
from megatron_retrieval.utils.files import atomic_file, write_json


@dataclass(kw_only=True, frozen=True)
class StrategiesConfig:
    """Compare strategies of training a retriever and a reader by exact match, F1, recall and hours, with paired
    intervals."""

    strategies: tuple[Path, ...]
    """A folder for each, in the order of the table; differences are from the first. Each holds answers/ (of
    qa-evaluate), recall/ (of retriever-evaluate), and training.json, a list of the output folders of the runs that the
    strategy needs, with lr_grid.json where learning rates were tried."""
    output_dir: Path
    """Folder for strategies.md and strategies.json."""
    picture: bool = False
    """Draw strategies.png as well (needs matplotlib)."""

    def __post_init__(self) -> None:
        if not self.strategies:
            raise ConfigError("--strategies: give at least one folder.")


def main(config: StrategiesConfig) -> None:
    """Write both tables, print the one for people."""
    found = read_strategies(config.strategies)
    table = markdown(found)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    with atomic_file(config.output_dir / "strategies.md") as file:
        file.write(table)
    write_json(config.output_dir / "strategies.json", as_json(found))
    if config.picture:
        picture(found, config.output_dir / "strategies.png")
    sys.stdout.write(table)
