"""Metrics of ranked passages by graded relevance judgements, as trec_eval computes them (through pytrec_eval)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.config.checks import Checked
from megatron_retrieval.data.files.trec import Qrels, read_qrels
from megatron_retrieval.errors import ConfigError, MismatchError
from megatron_retrieval.evaluation.intervals import mean_interval

#: depth at which nDCG and MRR are published
PUBLISHED_DEPTH = 10
#: name here -> trec_eval's, both followed by the depth
_MEASURES = {"ndcg": "ndcg_cut", "recall": "recall", "precision": "P", "success": "success", "map": "map_cut"}

#: measure -> [Q] its value for each question, NaN where a question is not judged
Values = dict[str, NDArray[np.float64]]


@dataclass(kw_only=True, frozen=True)
class JudgementsConfig(Checked):
    """Relevance judgements; recorded in the result."""

    qrels: Path | None = None
    """Graded judgements of questions and passages by their ids: TREC's qrels, BEIR's qrels/test.tsv, or MS MARCO's;
    plain or gzip. recall@k then is the share of relevant passages found, and recall by answers is called
    answer_recall@k."""
    ignore_identical_ids: bool = False
    """Score, and write what was found, as if a passage with the question's own id were not there, as BEIR does
    (ArguAna, Quora)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ignore_identical_ids and self.qrels is None:
            raise ConfigError("--ignore-identical-ids is of scores by --qrels: give both, or neither.")

    def read(self, question_ids: Sequence[str]) -> Qrels | None:
        """The judgements; None where no file is given.

        Raises:
            DataError: the file is malformed.
            MismatchError: it judges none of the questions.
        """
        if self.qrels is None:
            return None
        qrels = read_qrels(self.qrels)
        if qrels.keys().isdisjoint(question_ids):
            raise MismatchError(
                f"{self.qrels} judges none of the questions: it has ids such as {next(iter(qrels))!r}, the questions "
                f"such as {question_ids[0]!r}. Give questions with ids, and the judgements of these."
            )
        return qrels


def judged_values(
    question_ids: Sequence[str],
    ranked: Sequence[Sequence[str]],
    qrels: Qrels,
    depths: Sequence[int],
) -> Values:
    """`ndcg@k`, `mrr@k`, `map@k`, `recall@k`, `precision@k`, `success@k` and `unjudged@k` at every depth, and `map`, of
    each question.

    Grades are nDCG's gains; above 0 is relevant. A question that found nothing scores 0. `unjudged@k` is the share of
    the first k passages found that nobody judged: where it is high, the other figures are too low.

    Args:
        ranked: [Q] ids of the passages found for each question, best first. Scores, and with them their ties, play no
            part.
    """
    import pytrec_eval

    judged = [number for number, name in enumerate(question_ids) if name in qrels]
    run = {
        question_ids[number]: {name: float(-place) for place, name in enumerate(ranked[number])} for number in judged
    }
    cuts = ",".join(map(str, depths))
    measures = {f"{name}.{cuts}" for name in _MEASURES.values()} | {"map", "recip_rank"}
    scores = pytrec_eval.RelevanceEvaluator({name: qrels[name] for name in run}, measures).evaluate(run)

    def column(name: str) -> NDArray[np.float64]:
        values = np.full(len(question_ids), np.nan)
        values[judged] = [scores.get(question_ids[number], {}).get(name, 0.0) for number in judged]
        return values

    first = column("recip_rank")
    values: Values = {"map": column("map")}
    for depth in depths:
        values |= {f"{name}@{depth}": column(f"{measure}_{depth}") for name, measure in _MEASURES.items()}
        values[f"mrr@{depth}"] = np.where(first * depth < 1 - 1e-6, 0 * first, first)
        unjudged = np.full(len(question_ids), np.nan)
        unjudged[judged] = [_unjudged(ranked[number][:depth], qrels[question_ids[number]]) for number in judged]
        values[f"unjudged@{depth}"] = unjudged
    return values


def _unjudged(names: Sequence[str], grades: Mapping[str, int]) -> float:
    return sum(name not in grades for name in names) / max(1, len(names))


def judged_metrics(values: Values) -> dict[str, Any]:
    """Flat metrics: the means over the judged questions with 95 % intervals, and the number of these questions."""
    metrics: dict[str, Any] = {"num_judged_questions": int((~np.isnan(values["map"])).sum())}
    for name, column in values.items():
        interval = mean_interval(column[~np.isnan(column)])
        metrics[name] = interval.mean
        metrics[f"{name}_ci95"] = [interval.low, interval.high]
    return metrics
