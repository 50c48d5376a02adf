"""Two evaluations of the same questions, compared question by question; the owner of paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.errors import MismatchError
from megatron_retrieval.evaluation.intervals import NUM_RESAMPLES, paired_difference
from megatron_retrieval.evaluation.rank_metrics import UNKNOWN, Ranks, hits_at
from megatron_retrieval.evaluation.retrieval_results import RANKS, read_ranks


def compare_runs(baseline: Path, candidate: Path, topk: Sequence[int]) -> dict[str, Any]:
    """Differences in recall at each of `topk`, and in every metric by judgements that both have.

    Args:
        baseline: output folder of an evaluation.
        candidate: that of another; differences are candidate minus baseline.

    Returns:
        What was compared, and by metric {baseline, candidate, difference, difference_ci95 [low, high]}.

    Raises:
        DataError: a folder lacks its ranks, or they are malformed.
        MismatchError: the two are of different questions.
    """
    before_questions, before, before_values = read_ranks(baseline / RANKS)
    after_questions, after, after_values = read_ranks(candidate / RANKS)
    if before_questions != after_questions:
        raise MismatchError(
            f"{baseline} and {candidate} are evaluations of different questions "
            f"({len(before_questions):,} and {len(after_questions):,}); a paired comparison needs the same ones."
        )
    comparison: dict[str, Any] = {
        "baseline": str(baseline),
        "candidate": str(candidate),
        "num_questions": len(before_questions),
        "num_resamples": NUM_RESAMPLES,
    }
    answer_prefix = "answer_" if before_values else ""
    for prefix, old, new in ((answer_prefix, before.answer, after.answer), ("gold_", before.gold, after.gold)):
        known = (old != UNKNOWN) & (new != UNKNOWN)
        if known.any():
            comparison |= _compare(prefix, old[known], new[known], topk)
    for name in sorted(before_values.keys() & after_values.keys()):
        known = ~np.isnan(before_values[name]) & ~np.isnan(after_values[name])
        if known.any():
            comparison[name] = _difference(before_values[name][known], after_values[name][known])
    return comparison


def differences(comparison: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(metric, its difference) of what `compare_runs` returned."""
    return ((name, values) for name, values in comparison.items() if isinstance(values, dict))


def _compare(prefix: str, baseline: Ranks, candidate: Ranks, topk: Sequence[int]) -> dict[str, Any]:
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
