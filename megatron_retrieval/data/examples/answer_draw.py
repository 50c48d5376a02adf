"""Which of a question's answers is learned."""

from __future__ import annotations

import numpy as np

from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.utils.seeds import generator


def draw_answers(num_answers: Rows, seed: int, epoch: int, first_position: int) -> Rows:
    """[n] number of the answer to learn of each question, named by (seed, epoch, position in the epoch).

    Args:
        num_answers: [n] of each question, at least 1.
        first_position: of the first question in the order of the epoch.
    """
    drawn = np.zeros(len(num_answers), np.int64)
    for place in np.flatnonzero(num_answers > 1).tolist():
        random = generator(seed, "answers", epoch, first_position + place)
        drawn[place] = random.integers(num_answers[place])
    return drawn
