"""Periodic work of a training run: saving checkpoints and evaluating on held-out batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_retrieval.evaluation.bootstrap import mean_interval
from megatron_retrieval.training.metrics_log import MetricsLog
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer, reduce_metrics
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
    """Means over held-out batches, logged as `valid_<name>` and kept in metrics.json, rates with their 95 % intervals.

    Batches are weighted by the `num_examples` that the step counted in them; shares of a batch are summed over ranks,
    so that every example counts once whatever the number of ranks.
    """

    def __init__(self, batches: Callable[[], Iterable[Any]], interval: int, metrics_log: MetricsLog) -> None:
        self._batches, self._interval, self._log = batches, interval, metrics_log

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.iteration % self._interval and report.iteration != trainer.train_iters:
            return
        totals: dict[str, float] = defaultdict(float)
        for batch in self._batches():
            metrics = reduce_metrics(trainer.step.evaluate(batch), trainer.topology)
            for name, value in metrics.items():
                totals[name] += value if name.startswith("num_") else value * metrics["num_examples"]
        counts = {name: round(total) for name, total in totals.items() if name.startswith("num_")}
        num_examples = counts["num_examples"]
        means = {f"valid_{name}": total / num_examples for name, total in totals.items() if name not in counts}
        self._log.write(report.iteration, means)
        self._log.summarise(report.iteration, {**counts, **means, **_intervals(means, num_examples)})
        log.info("validation after %d: %s", report.iteration, ", ".join(f"{k} {v:.4g}" for k, v in means.items()))


def _intervals(means: Mapping[str, float], num_examples: int) -> dict[str, list[float]]:
    """The 95 % interval of every rate, from its hits."""
    intervals = {}
    for name, mean in means.items():
        if name.startswith("valid_accuracy"):
            hits = np.arange(num_examples) < round(mean * num_examples)
            interval = mean_interval(hits.astype(np.float64))
            intervals[f"{name}_ci95"] = [interval.low, interval.high]
    return intervals
