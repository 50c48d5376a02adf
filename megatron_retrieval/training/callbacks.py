"""Periodic work of a training run: saving checkpoints and evaluating on held-out batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_retrieval.evaluation.bootstrap import mean_interval
from megatron_retrieval.training.metrics_log import MetricsLog
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer, reduce_metrics
from megatron_retrieval.utils.files import write_json
from megatron_retrieval.utils.logging import get_logger

log = get_logger("train")


class SaveCheckpoints(Callback):
    """Calls `save(iteration)` every `interval` steps and once more at the end."""

    def __init__(self, save: Callable[[int], None], interval: int) -> None:
        self._save, self._interval, self._saved_iteration = save, interval, -1

    def on_start(self, trainer: Trainer) -> None:
        self._saved_iteration = trainer.iteration if trainer.iteration else -1

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.iteration % self._interval == 0:
            self._save_once(report.iteration)

    def on_end(self, trainer: Trainer) -> None:
        self._save_once(trainer.iteration)

    def _save_once(self, iteration: int) -> None:
        if iteration != self._saved_iteration:
            self._save(iteration)
            self._saved_iteration = iteration


@dataclass(kw_only=True, frozen=True)
class EvalConfig:
    """Evaluation on held-out batches during training."""

    eval_interval: int = 500
    """Iterations between two evaluations."""
    eval_iters: int | None = None
    """Held-out batches per evaluation; default: all."""


class EvaluateBatches(Callback):
    """Means over held-out batches, logged as `valid_<name>` and kept in metrics.json; shares of a batch are summed over
    ranks, so that every example counts once whatever the number of ranks."""

    def __init__(
        self, batches: Callable[[], Iterable[Any]], interval: int, metrics_log: MetricsLog, output_dir: str
    ) -> None:
        self._batches, self._interval, self._log = batches, interval, metrics_log
        self._output_dir = Path(output_dir)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.iteration % self._interval and report.iteration != trainer.train_iters:
            return
        totals: dict[str, float] = {}
        num_examples = 0
        for batch in self._batches():
            metrics = reduce_metrics(trainer.step.evaluate(batch), trainer.topology)
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value * batch.num_questions
            num_examples += batch.num_questions
        means = {f"valid_{name}": total / num_examples for name, total in totals.items()}
        self._log.write(report.iteration, means)
        if trainer.topology.is_main:
            self._write_summary(report.iteration, means, num_examples)
        log.info("validation after %d: %s", report.iteration, ", ".join(f"{k} {v:.4g}" for k, v in means.items()))

    def _write_summary(self, iteration: int, means: dict[str, float], num_examples: int) -> None:
        summary: dict[str, Any] = {"iteration": iteration, "num_questions": num_examples, **means}
        if "valid_accuracy" in means:
            num_hits = round(means["valid_accuracy"] * num_examples)
            hits = (np.arange(num_examples) < num_hits).astype(np.float64)
            interval = mean_interval(hits)
            summary["valid_accuracy_ci95"] = [interval.low, interval.high]
        write_json(self._output_dir / "metrics.json", summary)
