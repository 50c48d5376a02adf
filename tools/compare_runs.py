"""Compare the metrics of two evaluations of the same questions, with bootstrap intervals."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.evaluation.intervals import NUM_RESAMPLES, paired_difference
from megatron_retrieval.evaluation.rank_metrics import UNKNOWN, Ranks, hits_at
from megatron_retrieval.evaluation.retrieval_results import RANKS, read_ranks
from megatron_retrieval.reports.tables import percent, text_table
from megatron_retrieval.utils.files import write_json


@dataclass(kw_only=True, frozen=True)
class CompareRunsConfig:
    """Differences in recall and, with --qrels, in nDCG, MRR, MAP, ... between two retriever-evaluate output folders,
    with paired bootstrap intervals."""

    baseline: Path
    """Output folder of the run to compare with."""
    candidate: Path
    """Output folder of the run that should be better; the difference is candidate minus baseline."""
    topk: tuple[int, ...] = (1, 5, 20, 100)
    """Depths at which recall is compared."""
    output: Path | None = None
    """JSON file for the comparison; default: it is only printed."""


def main(config: CompareRunsConfig) -> None:
    baseline_questions, baseline, baseline_values = read_ranks(config.baseline / RANKS)
    candidate_questions, candidate, candidate_values = read_ranks(config.candidate / RANKS)
    if baseline_questions != candidate_questions:
        raise MismatchError(
            f"{config.baseline} and {config.candidate} are evaluations of different questions "
            f"({len(baseline_questions):,} and {len(candidate_questions):,}); a paired comparison needs the same ones."
        )
    comparison: dict[str, Any] = {
        "baseline": str(config.baseline),
        "candidate": str(config.candidate),
        "num_questions": len(baseline_questions),
        "num_resamples": NUM_RESAMPLES,
    }
    answer_prefix = "answer_" if baseline_values else ""
    for prefix, before, after in (
        (answer_prefix, baseline.answer, candidate.answer),
        ("gold_", baseline.gold, candidate.gold),
    ):
        known = (before != UNKNOWN) & (after != UNKNOWN)
        if known.any():
            comparison |= _compare(prefix, before[known], after[known], config.topk)
    for name in sorted(baseline_values.keys() & candidate_values.keys()):
        known = ~np.isnan(baseline_values[name]) & ~np.isnan(candidate_values[name])
        if known.any():
            comparison[name] = _difference(baseline_values[name][known], candidate_values[name][known])
    if config.output is not None:
        write_json(config.output, comparison)
    sys.stdout.write(_table(comparison) + "\n")


def _compare(prefix: str, baseline: Ranks, candidate: Ranks, topk: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for k in sorted(set(topk)):
        found[f"{prefix}recall@{k}"] = _difference(hits_at(baseline, k), hits_at(candidate, k))
    return found


def _difference(before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, Any]:
    difference = paired_difference(before, after)
    return {
        "baseline": float(before.mean()),
        "candidate": float(after.mean()),
        "difference": difference.mean,
        "difference_ci95": [difference.low, difference.high],
    }


def _table(comparison: dict[str, Any]) -> str:
    rows = []
    for name, values in comparison.items():
        if isinstance(values, dict):
            low, high = (f"{100 * end:+.1f}" for end in values["difference_ci95"])
            figures = [percent(values["baseline"]), percent(values["candidate"]), f"{100 * values['difference']:+.1f}"]
            rows.append([name, *figures, f"{low} to {high}"])
    header = ["", "baseline", "candidate", "difference", "95 % interval"]
    return f"{comparison['num_questions']:,} questions, in percent\n\n{text_table(header, rows)}"


if __name__ == "__main__":
    run_program(CompareRunsConfig, main)
