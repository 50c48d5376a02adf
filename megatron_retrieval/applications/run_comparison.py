"""Compare the metrics of two evaluations of the same questions, with bootstrap intervals."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.evaluation.paired_runs import compare_runs, differences
from megatron_retrieval.reports.tables import percent, text_table
from megatron_retrieval.utils.files import write_json


@dataclass(kw_only=True, frozen=True)
class CompareRunsConfig:
    """Differences in recall and, with --qrels, in nDCG, MRR, MAP, ... between two retriever-evaluate output folders,
    with paired bootstrap intervals. Metrics that only one of them has are left out."""

    baseline: Path
    """Output folder of the run to compare with."""
    candidate: Path
    """Output folder of the run that should be better; the difference is candidate minus baseline."""
    topk: tuple[int, ...] = (1, 5, 20, 100)
    """Depths at which recall is compared."""
    output: Path | None = None
    """JSON file for the comparison; default: it is only printed."""


def main(config: CompareRunsConfig) -> None:
    comparison = compare_runs(config.baseline, config.candidate, config.topk)
    if config.output is not None:
        write_json(config.output, comparison)
    sys.stdout.write(_table(comparison) + "\n")


def _table(comparison: dict[str, Any]) -> str:
    rows = []
    for name, values in differences(comparison):
        low, high = (f"{100 * end:+.1f}" for end in values["difference_ci95"])
        figures = [percent(values["baseline"]), percent(values["candidate"]), f"{100 * values['difference']:+.1f}"]
        rows.append([name, *figures, f"{low} to {high}"])
    header = ["", "baseline", "candidate", "difference", "95 % interval"]
    return f"{comparison['num_questions']:,} questions, in percent\n\n{text_table(header, rows)}"
