"""Confidence intervals by the percentile bootstrap over questions or documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.utils.seeds import generator

NUM_RESAMPLES = 10_000
LEVEL = 0.95
_SEED = 0
#: of a ratio: a resample holds a count for every document
_RESAMPLES_AT_ONCE = 500


@dataclass(frozen=True)
class Interval:
    """A mean over questions with its confidence interval."""

    mean: float
    low: float
    high: float


def mean_interval(
    values: NDArray[np.float64], *, seed: int = _SEED, num_resamples: int = NUM_RESAMPLES, level: float = LEVEL
) -> Interval:
    """The mean of one value per question, with the percentile interval at `level` of the means of resampled questions.

    Drawing n questions with replacement is drawing the count of each distinct value from a multinomial: hits and
    misses need two counts per resample instead of n indices.
    """
    if len(values) == 0:
        raise ValueError("no values: the mean of no questions is undefined")
    distinct, counts = np.unique(values, return_counts=True)
    random = generator(seed, "bootstrap")
    draws = random.multinomial(len(values), counts / len(values), size=num_resamples)
    means = draws @ distinct / len(values)
    return _interval(float(values.mean()), means, level)


def paired_difference(
    baseline: NDArray[np.float64],
    candidate: NDArray[np.float64],
    *,
    seed: int = _SEED,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The mean of candidate - baseline over the same questions in the same order.

    Pairs are resampled, so that a question that is hard for both runs does not widen the interval.
    """
    if baseline.shape != candidate.shape:
        raise ValueError(f"runs over different questions: {baseline.shape} and {candidate.shape}")
    return mean_interval(candidate - baseline, seed=seed, num_resamples=num_resamples, level=level)


def ratio_interval(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64],
    *,
    seed: int = _SEED,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The sum of one value per document over the sum of another, such as bits over bytes; documents are resampled.

    Raises:
        ValueError: there are no documents, or the second sum is zero.
    """
    if not len(numerators) or not denominators.sum() > 0:
        raise ValueError("no values: the ratio is undefined")
    random, number = generator(seed, "bootstrap"), len(numerators)
    parts = []
    for first in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, num_resamples - first)
        draws = random.multinomial(number, np.full(number, 1 / number), size=size)
        parts.append((draws @ numerators) / (draws @ denominators))
    return _interval(float(numerators.sum() / denominators.sum()), np.concatenate(parts), level)


def _interval(mean: float, resampled: NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))
