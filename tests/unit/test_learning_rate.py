"""Learning rates at the corners of each schedule."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_retrieval.training.learning_rate import ScheduleConfig
from megatron_retrieval.training.metrics_log import LogConfig
from megatron_retrieval.training.run import TrainingConfig


def test_linear_rises_to_the_peak_and_falls_to_the_end() -> None:
    schedule = ScheduleConfig(lr_warmup_iters=4)
    rates = [schedule.rate(step, 104, 1.0) for step in range(104)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[54] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.01)
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_warmup_fraction_counts_all_steps() -> None:
    assert ScheduleConfig(lr_warmup_fraction=0.1).rate(9, 100, 1.0) < 1.0
    assert ScheduleConfig(lr_warmup_fraction=0.1).rate(10, 100, 1.0) == 1.0


def test_cosine_and_constant() -> None:
    cosine = ScheduleConfig(lr_decay_style="cosine", lr_warmup_iters=0, min_lr=0.1)
    assert cosine.rate(0, 100, 1.0) == 1.0
    assert cosine.rate(50, 100, 1.0) == pytest.approx(0.55)
    assert cosine.rate(100, 100, 1.0) == pytest.approx(0.1)
    constant = ScheduleConfig(lr_decay_style="constant", lr_warmup_iters=0)
    assert {constant.rate(step, 10, 0.3) for step in range(10)} == {0.3}


def test_the_uneven_last_batch_of_an_epoch_is_a_step() -> None:
    training = TrainingConfig(log=LogConfig(output_dir="out"), global_batch_size=8, epochs=2)
    assert [training.num_steps(num_examples) for num_examples in (16, 17)] == [4, 6]
    assert dataclasses.replace(training, train_iters=5).num_steps(17) == 5
