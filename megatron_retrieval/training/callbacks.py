"""Periodic work of a training run: saving checkpoints and evaluating on held-out batches."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.evaluation.bootstrap import mean_interval
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.metrics_log import MetricsLog
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer, reduce_metrics
from megatron_retrieval.utils.logging import get_logger

log = get_logger("train")


class SaveCheckpoints(Callback):
    """Calls `save(iteration)` every `interval` steps and at the end; after a skipped step it waits for the next."""

    def __init__(self, save: Callable[[int], None], interval: int) -> None:
        self._save, self._interval, self._saved_iteration = save, interval, -1
        self._is_due = False

    def on_start(self, trainer: Trainer) -> None:
        self._saved_iteration = trainer.iteration if trainer.iteration else -1

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self._is_due |= report.iteration % self._interval == 0
        if self._is_due and report.succeeded:
            self._is_due = False
            self._save_once(report.iteration)

    def on_end(self, trainer: Trainer) -> None:
        self._save_once(trainer.iteration)

    def _save_once(self, iteration: int) -> None:
        if iteration != self._saved_iteration:
            self._save(iteration)
            self._saved_iteration = iteration


@dataclass(kw_only=True, frozen=True)
class EvalConfig(Checked):
    """Evaluation on held-out batches during training."""

    eval_interval: PositiveInt = 500
    """Iterations between two evaluations."""
    eval_iters: PositiveInt | None = None
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


class MeasuredTask(Protocol):
    """A task that a model in training can do at any time, such as finding or answering questions."""

    name: str

    def measure(self, topology: ProcessTopology) -> dict[str, Any]:
        """Figures of the model as it stands: rates with their `_ci95` beside them, and counts, named `num_...`; a
        collective over all ranks that leaves the model and the random streams as they were."""
        ...


class EvaluateTask(Callback):
    """Measures before the first step, every `interval` steps and after the last, logged as `valid_<figure>`;
    metrics.json has the newest with 95 % intervals, and the counts as `<task>_num_...`."""

    def __init__(self, task: MeasuredTask, interval: int, metrics_log: MetricsLog) -> None:
        self._task, self._interval, self._log = task, interval, metrics_log

    def on_start(self, trainer: Trainer) -> None:
        if trainer.iteration == 0:  # the curve begins with what the starting point can do
            self._evaluate(trainer)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.iteration % self._interval == 0 or report.iteration == trainer.train_iters:
            self._evaluate(trainer)

    def _evaluate(self, trainer: Trainer) -> None:
        started = time.perf_counter()
        figures = self._task.measure(trainer.topology)
        seconds = time.perf_counter() - started
        counts = {name: value for name, value in figures.items() if name.startswith("num_")}
        measured = {f"valid_{name}": value for name, value in figures.items() if name not in counts}
        means = {name: value for name, value in measured.items() if isinstance(value, float)}
        self._log.write(trainer.iteration, means)
        named_counts = {f"{self._task.name}_{name}": count for name, count in counts.items()}
        self._log.summarise(trainer.iteration, measured | named_counts)
        amounts = (
            f"{count:,} {name.removeprefix('num_').replace('_', ' ')}" for name, count in counts.items() if count
        )
        log.info(
            "%s after %d, %s: %s (%.1f s)",
            self._task.name, trainer.iteration, ", ".join(amounts),
            ", ".join(f"{name} {value:.4g}" for name, value in means.items()), seconds,
        )  # fmt: skip
