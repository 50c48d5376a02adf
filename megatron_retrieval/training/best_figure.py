"""The best figure of a run's evaluations: which checkpoint stays, and when training ends early."""

from __future__ import annotations

import math
from typing import Any

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.metrics_log import MetricsLog
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer
from megatron_retrieval.utils.logging import get_logger

#: figures that get better by getting less are those that end so
_LESS_IS_BETTER = ("loss", "rank")
_VALID = "valid_"

log = get_logger("train")


class BestFigure(Callback):
    """Follows one figure of the evaluations; called after those that evaluate, before what saves.

    Attributes:
        iteration: the step after which the figure was best; -1 before the first evaluation.

    Args:
        name: of the figure, without `valid_`.
        patience: evaluations in a row without a better figure after which training ends; None: it goes on.
    """

    resume_name = "best figure"

    def __init__(self, name: str, patience: int | None, metrics_log: MetricsLog, topology: ProcessTopology) -> None:
        self._name, self._patience, self._log, self._topology = name, patience, metrics_log, topology
        self._sign = -1.0 if name.endswith(_LESS_IS_BETTER) else 1.0
        self._best: float | None = None
        self._num_worse, self.iteration = 0, -1

    def state(self) -> dict[str, Any]:
        return {"name": self._name, "best": self._best, "worse": self._num_worse, "iteration": self.iteration}

    def restore(self, state: dict[str, Any]) -> None:
        if state.get("name", self._name) == self._name:  # figures of two names cannot be compared
            self._best, self._num_worse, self.iteration = state["best"], state["worse"], state["iteration"]

    def on_start(self, trainer: Trainer) -> None:
        if self._is_over():  # a finished run that is started again
            trainer.train_iters = trainer.iteration

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        value = self._value(report.iteration)
        if value is None:
            return
        if not math.isnan(value) and (self._best is None or self._sign * (value - self._best) > 0):
            self._best, self._num_worse, self.iteration = value, 0, report.iteration
            return
        self._num_worse += 1
        if self._is_over() and report.iteration < trainer.train_iters:
            log.info(
                "%s was best after %d steps (%s) and did not get better in %d evaluations: training ends",
                self._name, self.iteration, self._best, self._num_worse,
            )  # fmt: skip
            trainer.train_iters = report.iteration

    def _is_over(self) -> bool:
        return self._patience is not None and self._num_worse >= self._patience

    def _value(self, iteration: int) -> float | None:
        """The figure of this step's evaluation, that of the first rank on all; None where there was none."""
        figures = self._log.summarised_at(iteration)
        if not figures:
            return None
        if (name := f"{_VALID}{self._name}") not in figures:
            known = sorted(key.removeprefix(_VALID) for key, value in figures.items() if isinstance(value, float))
            raise ConfigError(f"--best-metric {self._name}: evaluation finds {', '.join(known)}.")
        value = gather_objects(figures[name], self._topology.world_group)[0]
        return math.nan if value is None else float(value)  # a rank of which nothing was found
