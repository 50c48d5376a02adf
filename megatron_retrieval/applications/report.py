"""The report of runs as a page."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from megatron_retrieval.config.checks import Checked, NonNegativeFloat, NonNegativeInt
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.reports.run_files import open_runs
from megatron_retrieval.reports.run_page import ReportOptions, write_run_page

PAGE = "report.html"


@dataclass(kw_only=True, frozen=True)
class ReportConfig(Checked):
    """Write a page about runs: curves, results with intervals, paired differences, settings, examples, cost."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders (--output-dir) of training runs and evaluations; the others are compared with the first."""
    output: Path | None = None
    """File to write; default: report.html in the first folder."""
    num_examples: NonNegativeInt = 8
    """Questions won, and as many lost, that are shown for each comparison."""
    price_per_hour: NonNegativeFloat | None = None
    """Price of a device hour, in any currency: a GPU's, or a process's without GPUs; default: no cost is named."""


def report(config: ReportConfig) -> None:
    """Write the page and print its path.

    Raises:
        ConfigError: no run is given, or matplotlib is not installed.
        DataError: a folder is no run's, or a file of it is malformed.
    """
    if not config.runs:
        raise ConfigError("Give the folder of at least one run.")
    output = config.output or config.runs[0] / PAGE
    options = ReportOptions(config.num_examples, config.price_per_hour)
    write_run_page(output, open_runs(config.runs), options)
    sys.stdout.write(f"{output}\n")
