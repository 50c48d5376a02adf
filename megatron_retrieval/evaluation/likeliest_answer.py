"""The likeliest of the answers that passages give separately."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def likeliest_answer(answers: Sequence[Hashable], log_likelihoods: Sequence[float]) -> tuple[int, float]:
    """The answer with the highest likelihood, summed over equal answers.

    Args:
        answers: of the passages, at least one.
        log_likelihoods: log p(z | q) p(a | q, z) of each.

    Returns:
        Index of the candidate with the highest log-likelihood among those that give the best answer, and the log of the
        answer's sum. Ties go to the first.
    """
    agreeing: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, answer in enumerate(answers):
        agreeing[answer].append(place)
    sums = {
        answer: float(np.logaddexp.reduce([log_likelihoods[place] for place in places]))
        for answer, places in agreeing.items()
    }
    best = max(sums, key=sums.__getitem__)
    return max(agreeing[best], key=log_likelihoods.__getitem__), sums[best]
