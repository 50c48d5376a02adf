"""Where the numbers of a training run go: metrics.jsonl, TensorBoard, and a line for the person who watches."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.marks import FREE
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer
from megatron_retrieval.utils.disk import writing
from megatron_retrieval.utils.files import atomic_file, write_json
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.progress import is_staged, progress_bar

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = get_logger("train")


@dataclass(kw_only=True, frozen=True)
class LogConfig(Checked):
    """What is logged, and where."""

    output_dir: str = field(metadata=FREE)
    """Folder for metrics.jsonl, metrics.json, the resolved configuration and the run record."""
    log_interval: PositiveInt = 10
    """Iterations between two logged steps."""
    tensorboard: bool = True
    """Write TensorBoard events into the folder tensorboard/ of --output-dir."""


class MetricsLog(Callback):
    """Writes every logged step; rank 0 only."""

    def __init__(self, config: LogConfig, examples_per_step: int, is_main: bool) -> None:
        self._config, self._examples_per_step, self._is_main = config, examples_per_step, is_main
        self._file: IO[str] | None = None
        self._board: SummaryWriter | None = None
        self._seconds, self._num_steps = 0.0, 0  # since the last logged step, evaluation and saving left out
        self._summary: dict[str, Any] = {}
        self._bar = progress_bar("training", "steps", visible=False)
        self._summarised: dict[str, int] = {}  # the iteration of each value

    def on_start(self, trainer: Trainer) -> None:
        if not self._is_main:
            return
        if is_staged():  # part of longer work, whose bars say what is left
            self._bar = progress_bar("training", "steps", trainer.train_iters - trainer.iteration)
        folder = Path(self._config.output_dir)
        path = folder / "metrics.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        last_kept = trainer.iteration or -1  # a new run keeps nothing, not even an evaluation before the first step
        drop_lines_after(path, last_kept)
        self._file = path.open("a", encoding="utf-8")
        if self._config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes a fifth of a second

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=last_kept + 1)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self._seconds, self._num_steps = self._seconds + report.seconds, self._num_steps + 1
        self._bar.update()
        if not self._is_main or not (self.is_due(report.iteration) or report.iteration >= trainer.train_iters):
            return
        rate = self._num_steps / max(self._seconds, 1e-9)
        self._seconds, self._num_steps = 0.0, 0
        examples_per_second = rate * self._examples_per_step
        self.write(report.iteration, {**report.metrics, "examples_per_second": examples_per_second})
        left = timedelta(seconds=round((trainer.train_iters - report.iteration) / rate))
        numbers = " | ".join(
            f"{name} {report.metrics[name]:.4g}"
            for name in ("loss", "accuracy", "lr", "grad_norm")
            if name in report.metrics
        )
        log.info(
            "iteration %d/%d | %s | %.1f examples/s | %s left",
            report.iteration, trainer.train_iters, numbers, examples_per_second, left,
        )  # fmt: skip

    def on_end(self, trainer: Trainer) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def on_divergence(self, trainer: Trainer) -> None:
        self.on_end(trainer)

    def is_due(self, iteration: int) -> bool:
        """Whether this step is one of those that are logged."""
        return iteration % self._config.log_interval == 0

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Append one line; other callbacks (evaluation) use this as well."""
        if self._file is not None:
            with writing(self._file.name):
                self._file.write(json.dumps({"iteration": iteration, **_plain(metrics)}) + "\n")
                self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, iteration)

    def summarise(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Renew `values` in metrics.json, beside what other callbacks left there in this run."""
        self._summary |= {"iteration": iteration, **values}
        self._summarised |= dict.fromkeys(values, iteration)
        if self._is_main:
            write_json(Path(self._config.output_dir) / "metrics.json", _plain(self._summary))

    def summarised_at(self, iteration: int) -> dict[str, Any]:
        """What evaluation found after this step, on every rank; empty where there was none."""
        return {name: value for name, value in self._summary.items() if self._summarised.get(name) == iteration}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """With None in the place of what JSON does not have: NaN and infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def drop_lines_after(path: Path, iteration: int) -> None:
    """Forget steps after `iteration`, which a resumed run takes again, and a line that a kill cut off."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _iteration_of(line) <= iteration]
    with atomic_file(path) as file:
        file.writelines(f"{line}\n" for line in kept)


def _iteration_of(line: str) -> float:
    try:
        record: dict[str, Any] = json.loads(line)
        return float(record["iteration"])
    except (json.JSONDecodeError, KeyError):
        return float("inf")
