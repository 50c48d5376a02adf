"""Exact match and F1 of answers, as SQuAD's official script defines them (arXiv 1606.05250, section 6.1)."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.evaluation.intervals import mean_interval

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(kw_only=True, frozen=True)
class AnswerScoreConfig:
    """When an answer counts as right; recorded in every result."""

    decompose_answers: bool = False
    """Canonical decomposition (NFD) of prediction and answers before they are compared, as some implementations do."""


@dataclass(frozen=True)
class AnswerScore:
    """The scores of one answer.

    Attributes:
        exact_match: 1.0 where it equals an acceptable answer after normalisation, else 0.0.
        f1: harmonic mean of precision and recall of its words, the best over the acceptable answers.
    """

    exact_match: float
    f1: float


def normalized_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and repeated white space."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def score_answer(prediction: str, answers: Sequence[str], config: AnswerScoreConfig) -> AnswerScore:
    """The best score over the acceptable answers; 0 where there are none, and for a blank prediction.

    F1 is 1 where prediction and answer consist of articles only, as in the script of SQuAD 2.0.
    """
    if not prediction.strip() or not answers:
        return AnswerScore(0.0, 0.0)
    if config.decompose_answers:
        prediction, *answers = (unicodedata.normalize("NFD", text) for text in (prediction, *answers))
    given = normalized_answer(prediction)
    wanted = [normalized_answer(answer) for answer in answers]
    return AnswerScore(float(given in wanted), max(_word_f1(given, answer) for answer in wanted))


def _word_f1(given: str, wanted: str) -> float:
    if given == wanted:
        return 1.0
    words, wanted_words = given.split(), wanted.split()
    num_same = sum((Counter(words) & Counter(wanted_words)).values())
    return 2 * num_same / (len(words) + len(wanted_words))


def answer_metrics(scores: Sequence[AnswerScore]) -> dict[str, Any]:
    """Flat metrics: exact_match and f1 with 95 % intervals, and num_questions."""
    metrics: dict[str, Any] = {"num_questions": len(scores)}
    for name in ("exact_match", "f1"):
        values: NDArray[np.float64] = np.array([getattr(score, name) for score in scores], np.float64)
        interval = mean_interval(values)
        metrics[name] = interval.mean
        metrics[f"{name}_ci95"] = [interval.low, interval.high]
    return metrics
