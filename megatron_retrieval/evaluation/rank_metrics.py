"""Ranks of first hits, recall@k and the average rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOT_FOUND = 0
UNKNOWN = -1

Ranks = NDArray[np.int64]


@dataclass(frozen=True)
class RetrievalRanks:
    """The rank of every question's first hit.

    Attributes:
        answer: [Q] rank (from 1) of the first passage with an answer; NOT_FOUND if no retrieved passage has one,
            UNKNOWN where the question has no answers.
        gold: [Q] rank of the first gold passage, NOT_FOUND, or UNKNOWN where the question names no gold passage of
            this evidence.
    """

    answer: Ranks
    gold: Ranks

    @property
    def known_answer(self) -> Ranks:
        """The ranks of the questions with answers."""
        return self.answer[self.answer != UNKNOWN]

    @property
    def known_gold(self) -> Ranks:
        """The gold ranks of the questions with a gold passage."""
        return self.gold[self.gold != UNKNOWN]


def first_hit_ranks(hits: NDArray[np.bool_]) -> Ranks:
    """[Q, K] hits by rank -> [Q] rank of the first, NOT_FOUND if none."""
    if hits.shape[1] == 0:
        return np.zeros(len(hits), np.int64)
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, NOT_FOUND)


def hits_at(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """[Q] 1.0 where the first hit is among the first k, else 0.0; their mean is recall@k."""
    return ((ranks > NOT_FOUND) & (ranks <= k)).astype(np.float64)


def average_rank(ranks: Ranks) -> float | None:
    """Mean rank of the first hit over the questions with a hit; None if there are none.

    Recall at the depth of retrieval is the share of these questions.
    """
    found = ranks[ranks > NOT_FOUND]
    return float(found.mean()) if len(found) else None
