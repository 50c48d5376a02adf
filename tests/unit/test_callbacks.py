"""Validation averages over examples, not over batches, and all that writes metrics.json writes one file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_retrieval.errors import DivergenceError, RunDivergedError
from megatron_retrieval.training.callbacks import EvaluateBatches, EvaluateTask
from megatron_retrieval.training.metrics_log import LogConfig, MetricsLog
from megatron_retrieval.training.trainer import StepReport
from megatron_retrieval.types.metrics import Count, Mean, Metrics, Rate

#: (right answers, examples) of the held-out batches
BATCHES = [(1, 1), (0, 3), (2, 6)]


class _Group:
    def size(self) -> int:
        return 1


class _Step:
    """Says what each batch holds."""

    def evaluate(self, batch: tuple[int, int]) -> Metrics:
        hits, count = batch
        rate = torch.tensor(hits / count)
        rates = {"accuracy": Rate(rate, count), "accuracy@5": Rate(rate / 2, count)}
        return {**rates, "loss": Mean(1 - rate, count), "num_words": Count(torch.tensor(2.0 * count))}


@pytest.fixture
def trainer() -> Any:
    topology = SimpleNamespace(groups=SimpleNamespace(dp=_Group()), is_main=True)
    return SimpleNamespace(step=_Step(), topology=topology, train_iters=25, iteration=0)


def _log(folder: Path) -> MetricsLog:
    return MetricsLog(LogConfig(output_dir=str(folder), tensorboard=False), examples_per_step=1, is_main=True)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_batches_are_weighted_by_the_examples_that_the_step_counted(tmp_path: Path, trainer: Any) -> None:
    log = _log(tmp_path)
    log.on_start(trainer)
    log.summarise(10, {"valid_recall@1": 0.5})
    callback = EvaluateBatches(lambda: BATCHES, 10, log)
    for iteration in (10, 11, 20, 25):
        callback.on_step(trainer, StepReport(iteration, {}, 0.0))
    assert [line["iteration"] for line in _lines(tmp_path)] == [10, 20, 25]
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert (summary["iteration"], summary["num_examples"], summary["valid_recall@1"]) == (25, 10, 0.5)
    assert summary["num_words"] == 20
    assert summary["valid_accuracy"] == pytest.approx(0.3)
    assert summary["valid_loss"] == pytest.approx(0.7)
    for name, mean in (("valid_accuracy", 0.3), ("valid_accuracy@5", 0.15)):
        low, high = summary[f"{name}_ci95"]
        assert 0 <= low < mean < high < 1
    assert "valid_loss_ci95" not in summary


def test_a_new_run_keeps_no_line_of_an_earlier_one(tmp_path: Path, trainer: Any) -> None:
    for _ in range(2):
        log = _log(tmp_path)
        log.on_start(trainer)
        log.write(0, {"valid_recall@1": 0.0})
        log.on_end(trainer)
    assert _lines(tmp_path) == [{"iteration": 0, "valid_recall@1": 0.0}]


class _Ruined:
    """A task that weights without a finite value cannot do."""

    name = "answers"

    def measure(self, topology: Any) -> dict[str, Any]:
        raise DivergenceError("logits are not finite")


@pytest.mark.parametrize(("world_size", "error"), [(1, RunDivergedError), (2, DivergenceError)])
def test_one_process_knows_that_all_have_diverged(
    tmp_path: Path, trainer: Any, world_size: int, error: type[Exception]
) -> None:
    trainer.topology.world_size = world_size
    with pytest.raises(DivergenceError, match="logits are not finite") as caught:
        EvaluateTask(_Ruined(), 1, _log(tmp_path)).on_step(trainer, StepReport(1, {}, 0.0))
    assert caught.type is error
