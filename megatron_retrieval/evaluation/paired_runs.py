"""Two evaluations of the same questions, compared question by question; the owner of paired differences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.errors import DataError, MismatchError
from megatron_retrieval.evaluation.intervals import NUM_RESAMPLES, paired_difference
from megatron_retrieval.evaluation.predictions import PREDICTIONS
from megatron_retrieval.evaluation.rank_metrics import UNKNOWN, hits_at
from megatron_retrieval.evaluation.retrieval_results import RANKS, read_ranks
from megatron_retrieval.utils.files import read_lines

#: before recall by answers, where another recall stands beside it
ANSWER = "answer_"
#: one value a question, NaN where it has none
Column = NDArray[np.float64]


def compare_runs(baseline: Path, candidate: Path, topk: Sequence[int]) -> dict[str, Any]:
    """Differences in recall at each of `topk` and in every metric by judgements that both have; of readers, in exact
    match and F1. Recall by answers is `answer_recall@k` where one of them has judgements, whose `recall@k` is another
    measure; else `recall@k`.

    Args:
        baseline: output folder of an evaluation.
        candidate: that of another; differences are candidate minus baseline.

    Returns:
        What was compared, and by metric {baseline, candidate, difference, difference_ci95 [low, high]}.

    Raises:
        DataError: a folder has neither ranks nor predictions, or they are malformed.
        MismatchError: the two are of different questions.
    """
    runs = [_columns(run, topk) for run in (baseline, candidate)]
    (before_questions, before, _), (after_questions, after, _) = runs
    is_judged = any(judged for *_, judged in runs)
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
    for name in [name for name in before if name in after]:
        known = ~np.isnan(before[name]) & ~np.isnan(after[name])
        if known.any():
            shown = name if is_judged else name.removeprefix(ANSWER)
            comparison[shown] = _difference(before[name][known], after[name][known])
    return comparison


def differences(comparison: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(metric, its difference) of what `compare_runs` returned."""
    return ((name, values) for name, values in comparison.items() if isinstance(values, dict))


def _columns(run: Path, topk: Sequence[int]) -> tuple[list[str], dict[str, Column], bool]:
    """The questions of a run; by metric, a value for each; whether metrics by judgements are among these."""
    if (run / PREDICTIONS).exists() and not (run / RANKS).exists():
        return *_read_predictions(run / PREDICTIONS), False
    questions, ranks, values = read_ranks(run / RANKS)
    columns: dict[str, Column] = {}
    for prefix, own in ((ANSWER, ranks.answer), ("gold_", ranks.gold)):
        for k in sorted(set(topk)):
            columns[f"{prefix}recall@{k}"] = np.where(own == UNKNOWN, np.nan, hits_at(own, k))
    return questions, columns | {name: values[name] for name in sorted(values)}, bool(values)


def _read_predictions(path: Path) -> tuple[list[str], dict[str, Column]]:
    questions, values = [], []
    for number, line in enumerate(read_lines(path), 1):
        try:
            record = json.loads(line)
            questions.append(f"{record['id']}\t{record['question']}")
            values.append((float(record["exact_match"]), float(record["f1"])))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(path, "not a line of predictions", line=number, hint="Evaluate again.") from error
    return questions, dict(zip(("exact_match", "f1"), np.array(values).T, strict=True))


def _difference(before: Column, after: Column) -> dict[str, Any]:
    difference = paired_difference(before, after)
    return {
        "baseline": float(before.mean()),
        "candidate": float(after.mean()),
        "difference": difference.mean,
        "difference_ci95": [difference.low, difference.high],
    }
