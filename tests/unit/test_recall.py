"""Recall and ranks against hand-counted cases."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_retrieval.evaluation.rank_metrics import (
    NOT_FOUND,
    UNKNOWN,
    RetrievalRanks,
    average_rank,
    first_hit_ranks,
    hits_at,
)
from megatron_retrieval.evaluation.retrieval_results import retrieval_metrics


def test_first_hit() -> None:
    hits = np.array([[False, True, True], [False, False, False], [True, False, False]])
    assert first_hit_ranks(hits).tolist() == [2, NOT_FOUND, 1]
    assert first_hit_ranks(np.zeros((2, 0), bool)).tolist() == [NOT_FOUND, NOT_FOUND]


def test_recall_counts_ranks_up_to_k() -> None:
    ranks = np.array([2, NOT_FOUND, 1, 5])
    assert [hits_at(ranks, k).mean() for k in (1, 2, 4, 5)] == [0.25, 0.5, 0.5, 0.75]
    assert average_rank(ranks) == pytest.approx(8 / 3)
    assert average_rank(np.array([NOT_FOUND])) is None


def test_metrics_are_flat_and_gold_counts_known_questions_only() -> None:
    ranks = RetrievalRanks(answer=np.array([1, 3, NOT_FOUND, 2]), gold=np.array([2, UNKNOWN, NOT_FOUND, UNKNOWN]))
    metrics = retrieval_metrics(ranks, [1, 5])
    assert metrics["num_questions"] == 4
    assert (metrics["recall@1"], metrics["recall@5"]) == (0.25, 0.75)
    assert metrics["num_gold_questions"] == 2
    assert (metrics["gold_recall@1"], metrics["gold_recall@5"]) == (0.0, 0.5)
    assert (metrics["average_rank"], metrics["gold_average_rank"]) == (2.0, 2.0)
    low, high = metrics["recall@5_ci95"]
    assert 0.0 <= low < 0.75 < high <= 1.0
    without_gold = retrieval_metrics(RetrievalRanks(ranks.answer, np.full(4, UNKNOWN)), [1])
    assert not any(key.startswith("gold_") for key in without_gold)
    half = retrieval_metrics(RetrievalRanks(np.array([1, UNKNOWN]), np.full(2, UNKNOWN)), [1])
    assert (half["recall@1"], half["num_questions"], half["num_questions_without_answers"]) == (1.0, 2, 1)
    unanswered = retrieval_metrics(RetrievalRanks(np.full(2, UNKNOWN), np.full(2, UNKNOWN)), [1])
    assert not any("recall" in key for key in unanswered)
