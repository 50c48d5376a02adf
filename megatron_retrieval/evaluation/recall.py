"""Ranks of first hits, and the recall that follows from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOT_FOUND = 0
UNKNOWN = -1

Ranks = NDArray[np.int64]


@dataclass(frozen=True)
class RetrievalRanks:
    """Where the first hit of every question stands.

    Attributes:
        answer: [Q] rank (from 1) of the first passage with an answer; NOT_FOUND if none retrieved has one.
        gold: [Q] rank of the first gold passage, NOT_FOUND, or UNKNOWN where the question names no gold passage of
            this evidence.
    """

    answer: Ranks
    gold: Ranks

    @property
    def known_gold(self) -> Ranks:
        """The gold ranks of those questions that have one."""
        return self.gold[self.gold != UNKNOWN]


def first_hit_ranks(hits: NDArray[np.bool_]) -> Ranks:
    """[Q, K] hits by rank -> [Q] rank of the first, NOT_FOUND if none."""
    if hits.shape[1] == 0:
        return np.zeros(len(hits), np.int64)
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, NOT_FOUND)


def hits_at(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """[Q] 1.0 where the first hit stands among the first k, else 0.0; their mean is recall@k."""
    return ((ranks != NOT_FOUND) & (ranks <= k)).astype(np.float64)


def average_rank(ranks: Ranks) -> float | None:
    """Mean rank of the first hit over the questions that have one; None if none has. To be read beside the recall
    at the depth of retrieval, which says for how many that is."""
    found = ranks[ranks != NOT_FOUND]
    return float(found.mean()) if len(found) else None
