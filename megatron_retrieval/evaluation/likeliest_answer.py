"""Of the answers that passages give each for itself, the likeliest one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def likeliest_answer(answers: Sequence[Hashable], log_likelihoods: Sequence[float]) -> tuple[int, float]:
    """The answer of the greatest likelihood, equal ones added up.

    Args:
        answers: at least one; what is equal is one answer.
        log_likelihoods: of each, log p(z | q) p(a | q, z).

    Returns:
        The place of the one that says it loudest, and the log of the sum. Of equally likely answers, and of those that
        say as much for it, the first.
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
