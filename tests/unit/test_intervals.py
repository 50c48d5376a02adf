"""Bootstrap intervals: the textbook's width, the same every time, narrower where runs agree."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_retrieval.evaluation.intervals import mean_interval, paired_difference


def _hits(num_hits: int, num_questions: int) -> np.ndarray:
    return (np.arange(num_questions) < num_hits).astype(float)


def test_interval_of_a_rate_is_the_normal_approximation_for_many_questions() -> None:
    interval = mean_interval(_hits(800, 2000))
    half = 1.96 * np.sqrt(0.4 * 0.6 / 2000)
    assert interval.mean == 0.4
    assert (interval.low, interval.high) == pytest.approx((0.4 - half, 0.4 + half), abs=0.0015)


def test_agrees_with_resampling_question_by_question() -> None:
    values = np.random.default_rng(0).exponential(size=300)
    indices = np.random.default_rng(1).integers(300, size=(10_000, 300))
    direct = np.quantile(values[indices].mean(axis=1), [0.025, 0.975])
    interval = mean_interval(values)
    assert (interval.low, interval.high) == pytest.approx(tuple(direct), abs=0.01)


def test_seeded() -> None:
    values = np.random.default_rng(0).exponential(size=100)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values)


def test_extremes_and_no_questions() -> None:
    assert mean_interval(np.ones(5)).low == 1.0
    with pytest.raises(ValueError, match="no questions"):
        mean_interval(np.empty(0))


def test_pairing_narrows_the_interval() -> None:
    baseline = _hits(1000, 2000)
    candidate = _hits(1040, 2000)
    paired = paired_difference(baseline, candidate)
    assert paired.mean == pytest.approx(0.02)
    assert paired.low > 0.0
    unpaired = paired_difference(baseline, candidate[np.random.default_rng(0).permutation(2000)])
    assert unpaired.mean == pytest.approx(0.02)
    assert unpaired.high - unpaired.low > 3 * (paired.high - paired.low)
    with pytest.raises(ValueError, match="different questions"):
        paired_difference(baseline, candidate[:-1])
