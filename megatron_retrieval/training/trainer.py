"""The one training loop. It knows no objective: a step module computes gradients, callbacks do what is periodic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_retrieval.errors import RunDivergedError, StoppedError
from megatron_retrieval.parallel.collectives import all_reduce_sum, any_rank
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.skipped_steps import SkippedSteps
from megatron_retrieval.training.steps.step import StepModule
from megatron_retrieval.types.metrics import Metrics
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.signals import StopSignal

log = get_logger("trainer")


@dataclass(frozen=True)
class StepReport:
    """What one training step did.

    Attributes:
        iteration: steps taken so far, this one included.
        metrics: means or counts over the global batch, `loss` among them; beside them `lr`, `loss_scale` and, where
            known, `grad_norm`; `skipped_steps` counts those of this process that left the weights as they were.
        seconds: duration of the step, data included.
        succeeded: False where the loss or the gradient was not finite, and the weights were left as they were.
    """

    iteration: int
    metrics: Mapping[str, float]
    seconds: float
    succeeded: bool = True


class Callback:
    """Periodic work; every hook runs on every rank."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this process."""

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """After every step."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step, or the one at which a stop signal was seen."""

    def on_divergence(self, trainer: Trainer) -> None:
        """After the step at which the run diverged: let go of what is held, since the process may go on with another
        run."""


class Trainer:
    """Runs `train_iters` steps, from `iteration` on.

    Args:
        batches: `batches(i)` iterates over this rank's shares of the global batches i, i + 1, ...
        learning_rate: rate of step i (from 0).
        callbacks: called in this order.
        iteration: steps already taken (a resumed run).

    Attributes:
        stop: says whether a stop signal was received.
    """

    def __init__(
        self,
        *,
        model: DataParallelModel,
        step: StepModule,
        optimizer: Optimizer,
        batches: Callable[[int], Iterator[Any]],
        learning_rate: Callable[[int], float],
        train_iters: int,
        topology: ProcessTopology,
        callbacks: Sequence[Callback] = (),
        iteration: int = 0,
    ) -> None:
        self.model, self.step, self.optimizer, self.topology = model, step, optimizer, topology
        self.train_iters, self.iteration = train_iters, iteration
        self.stop = StopSignal()
        self._is_renewed = False
        self._skipped = SkippedSteps()
        self._batches, self._learning_rate, self._callbacks = batches, learning_rate, callbacks

    def fit(self) -> bool:
        """Train to the end, or until a stop signal.

        Returns:
            True if all iterations are done.

        Raises:
            RunDivergedError: losses, gradients or weights are not finite; a run that follows finds nothing held.
        """
        with self.stop:
            try:
                for callback in self._callbacks:
                    callback.on_start(self)
            except StoppedError as error:
                log.warning("%s", error)
                return False
            try:
                if self.iteration < self.train_iters:
                    self._run()
                for callback in self._callbacks:
                    callback.on_end(self)
            except RunDivergedError:
                for callback in self._callbacks:
                    callback.on_divergence(self)
                raise
        return self.iteration >= self.train_iters

    def renew_batches(self) -> None:
        """Have the coming batches made anew, since what they are made from has changed: some are prepared ahead. All
        ranks call this after the same step."""
        self._is_renewed = True

    def _run(self) -> None:
        while self._run_batches():
            pass

    def _run_batches(self) -> bool:
        """Run steps until training ends.

        Returns:
            True where it does not: batches are to be made anew.
        """
        self._is_renewed = False
        batches = self._batches(self.iteration)
        started = time.perf_counter()
        for batch in batches:
            report = self._step(batch, started)
            for callback in self._callbacks:
                callback.on_step(self, report)
            if any_rank(self.stop.received, self.topology.world_group, self.topology.device):
                log.warning("stop signal: ending after iteration %d of %d", self.iteration, self.train_iters)
                break
            if self.iteration >= self.train_iters:
                break
            if self._is_renewed:
                return True
            started = time.perf_counter()
        return False

    def _step(self, batch: Any, started: float) -> StepReport:
        self.model.zero_gradients()
        loss_scale, lr = self.optimizer.loss_scale, self._learning_rate(self.iteration)
        partial = self.step.forward_backward(batch, self.iteration, loss_scale)
        self.model.reduce_gradients()
        metrics = reduce_metrics(partial, self.topology)
        loss = metrics["loss"]
        result = self.optimizer.step(lr, is_loss_finite=math.isfinite(loss))
        self.iteration += 1
        self._skipped.note(self.iteration, loss, result)
        metrics |= {"lr": lr, "loss_scale": loss_scale}
        if self._skipped.total:
            metrics["skipped_steps"] = self._skipped.total
        if result.grad_norm is not None:
            metrics["grad_norm"] = result.grad_norm
        return StepReport(self.iteration, metrics, time.perf_counter() - started, succeeded=result.succeeded)


def reduce_metrics(parts: Metrics, topology: ProcessTopology) -> dict[str, float]:
    """Sum each rank's part over the data-parallel ranks, in one message; names in alphabetical order."""
    names = sorted(parts)
    total = all_reduce_sum(torch.stack([parts[name].part.detach().double() for name in names]), topology.groups.dp)
    return dict(zip(names, total.tolist(), strict=True))
