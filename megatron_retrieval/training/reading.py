"""Exact match and F1 during training: held-out questions answered with the weights of the moment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from megatron_retrieval.data.reader_questions import ReaderQuestion
from megatron_retrieval.evaluation.exact_match import AnswerScoreConfig, answer_metrics
from megatron_retrieval.evaluation.reader_task import Reader, evaluate_reader
from megatron_retrieval.parallel import ProcessTopology
from megatron_retrieval.training.metrics_log import MetricsLog
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer
from megatron_retrieval.utils.logging import get_logger

log = get_logger("train")


class ReadingTask:
    """Questions to put to a reader in training, as often as wanted.

    Args:
        model: what `reader` answers with; it is put into evaluation mode for that.
    """

    def __init__(
        self, questions: Sequence[ReaderQuestion], reader: Reader, model: nn.Module, scoring: AnswerScoreConfig
    ) -> None:
        self._questions, self._reader, self._model, self._scoring = questions, reader, model, scoring

    def measure(self, topology: ProcessTopology) -> dict[str, Any]:
        """`answer_metrics` of the model as it stands; a collective over all ranks.

        Draws no random number and gives the model back in the mode in which it was.
        """
        was_training = self._model.training
        self._model.eval()
        try:
            results = evaluate_reader(self._questions, self._reader, self._scoring, topology, show_progress=False)
        finally:
            self._model.train(was_training)
        return answer_metrics([score for _, score in results])


class EvaluateReading(Callback):
    """Measures before the first step, every `interval` steps and after the last, logged as `valid_exact_match` and
    `valid_f1`; metrics.json has the newest with 95 % intervals."""

    def __init__(self, task: ReadingTask, interval: int, metrics_log: MetricsLog) -> None:
        self._task, self._interval, self._log = task, interval, metrics_log

    def on_start(self, trainer: Trainer) -> None:
        if trainer.iteration == 0:  # the curve begins with what the starting point can do
            self._evaluate(trainer)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.iteration % self._interval == 0 or report.iteration == trainer.train_iters:
            self._evaluate(trainer)

    def _evaluate(self, trainer: Trainer) -> None:
        started = time.perf_counter()
        metrics = self._task.measure(trainer.topology)
        num_questions = metrics.pop("num_questions")
        measured = {f"valid_{name}": value for name, value in metrics.items()}
        means = {name: value for name, value in measured.items() if isinstance(value, float)}
        self._log.write(trainer.iteration, means)
        self._log.summarise(trainer.iteration, {**measured, "reading_num_questions": num_questions})
        log.info(
            "reading after %d, %s questions: %s (%.1f s)",
            trainer.iteration, f"{num_questions:,}", ", ".join(f"{k} {v:.4g}" for k, v in means.items()),
            time.perf_counter() - started,
        )  # fmt: skip
