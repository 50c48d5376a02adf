"""Periodic work of a training run: saving checkpoints and evaluating on held-out batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.errors import ConfigError, DivergenceError, RunDivergedError
from megatron_retrieval.evaluation.intervals import mean_interval
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.best_figure import BestFigure
from megatron_retrieval.training.metrics_log import MetricsLog
from megatron_retrieval.training.resume import RunCheckpoints
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer, reduce_metrics
from megatron_retrieval.types.metrics import Count, Mean, Metric, Rate
from megatron_retrieval.utils.logging import get_logger

log = get_logger("train")


class SaveCheckpoints(Callback):
    """Saves every `interval` steps, whenever a figure is the best so far, and at the end; after a skipped step it waits
    for the next."""

    def __init__(self, checkpoints: RunCheckpoints, interval: int, best: BestFigure | None = None) -> None:
        self._checkpoints, self._interval, self._saved_iteration = checkpoints, interval, -1
        self._best, self._is_due, self._is_best = best, False, False

    def on_start(self, trainer: Trainer) -> None:
        self._saved_iteration = trainer.iteration if trainer.iteration else -1

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self._checkpoints.look()
        self._is_best |= self._best is not None and self._best.iteration == report.iteration
        self._is_due |= self._is_best or report.iteration % self._interval == 0
        if self._is_due and report.succeeded:
            self._is_due = False
            self._save_once(report.iteration)

    def on_end(self, trainer: Trainer) -> None:
        self._save_once(trainer.iteration)
        self._checkpoints.finish()

    def on_divergence(self, trainer: Trainer) -> None:
        self._checkpoints.finish()

    def _save_once(self, iteration: int) -> None:
        if iteration != self._saved_iteration:
            self._checkpoints.save(iteration, is_best=self._is_best)
            self._saved_iteration, self._is_best = iteration, False


@dataclass(kw_only=True, frozen=True)
class EvalConfig(Checked):
    """Evaluation on held-out batches during training."""

    eval_interval: PositiveInt = 500
    """Iterations between two evaluations."""
    eval_iters: PositiveInt | None = None
    """Held-out batches per evaluation; default: all."""
    best_metric: str | None = None
    """Figure of the evaluation by which the best checkpoint is kept (loss, accuracy, recall@5, exact_match, ...); it is
    read as `best` in the folder of --save. Default: none is kept."""
    early_stopping_patience: PositiveInt | None = None
    """Evaluations in a row without a better --best-metric after which training ends; default: it goes on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early_stopping_patience is not None and self.best_metric is None:
            raise ConfigError("--early-stopping-patience needs --best-metric: the figure that has to get better.")


class EvaluateBatches(Callback):
    """Means over held-out batches, logged as `valid_<name>` and kept in metrics.json, rates with their 95 % intervals,
    beside counts and `num_examples`, which the loss is the mean over.

    Every example counts once, whatever the number of ranks and the sizes of the batches.
    """

    def __init__(self, batches: Callable[[], Iterable[Any]], interval: int, metrics_log: MetricsLog) -> None:
        self._batches, self._interval, self._log = batches, interval, metrics_log

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.iteration % self._interval and report.iteration != trainer.train_iters:
            return
        totals = self._totals(trainer)
        counts = {name: round(total.sum) for name, total in totals.items() if total.kind is Count}
        counts["num_examples"] = round(totals["loss"].over)
        means = {f"valid_{name}": total.sum / total.over for name, total in totals.items() if name not in counts}
        rates = {f"valid_{name}": total.over for name, total in totals.items() if total.kind is Rate}
        intervals = {f"{name}_ci95": _interval(means[name], round(over)) for name, over in rates.items()}
        self._log.write(report.iteration, means)
        self._log.summarise(report.iteration, {**dict(sorted(counts.items())), **means, **intervals})
        log.info("validation after %d: %s", report.iteration, ", ".join(f"{k} {v:.4g}" for k, v in means.items()))

    def _totals(self, trainer: Trainer) -> dict[str, _Total]:
        """Over all held-out batches, by name."""
        totals: dict[str, _Total] = {}
        for batch in self._batches():
            parts = trainer.step.evaluate(batch)
            for name, value in reduce_metrics(parts, trainer.topology).items():
                totals.setdefault(name, _Total(type(parts[name]))).add(value, parts[name])
        return totals


@dataclass
class _Total:
    """A metric over several batches: its sum, each batch weighted by what its mean is over, and the sum of weights."""

    kind: type[Metric]
    sum: float = 0.0
    over: float = 0.0

    def add(self, value: float, metric: Metric) -> None:
        weight = float(metric.over) if isinstance(metric, Mean) else 1.0
        self.sum += value * weight
        self.over += weight


def _interval(rate: float, num_examples: int) -> list[float]:
    """The 95 % interval of a rate, from its hits."""
    hits = np.arange(num_examples) < round(rate * num_examples)
    interval = mean_interval(hits.astype(np.float64))
    return [interval.low, interval.high]


class MeasuredTask(Protocol):
    """A task that a model in training can do at any time, such as finding or answering questions."""

    name: str

    def measure(self, topology: ProcessTopology) -> dict[str, Any]:
        """Figures of the model as it stands: counts are int, means are float, and rates have their interval beside
        them, named `..._ci95`. A collective over all ranks that leaves the model and the random streams as they
        were."""
        ...


class EvaluateTask(Callback):
    """Measures before the first step, every `interval` steps and after the last, logged as `valid_<figure>`;
    metrics.json has the newest with 95 % intervals, and the counts as `<task>_<count>`."""

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
        figures = self._measure(trainer.topology)
        seconds = time.perf_counter() - started
        counts = {name: value for name, value in figures.items() if isinstance(value, int)}
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

    def _measure(self, topology: ProcessTopology) -> dict[str, Any]:
        """Figures of the model; one process that cannot compute them knows that the run has diverged."""
        try:
            return self._task.measure(topology)
        except DivergenceError as error:
            if topology.world_size > 1:  # the other ranks may not know
                raise
            raise RunDivergedError(str(error)) from error
