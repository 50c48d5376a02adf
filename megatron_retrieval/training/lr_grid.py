"""One training run for each of several learning rates, and the choice among them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from megatron_retrieval.config.checks import Checked, PositiveFloat
from megatron_retrieval.config.marks import FREE
from megatron_retrieval.errors import ConfigError, RunDivergedError
from megatron_retrieval.parallel.collectives import on_first_rank
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.files import link, read_json, write_json
from megatron_retrieval.utils.logging import get_logger

log = get_logger("train")
GRID, BEST = "lr_grid.json", "best"
#: of metrics without one of these in their names more is better
_LOW_IS_GOOD = ("loss", "rank", "entropy")
Job = TypeVar("Job", bound=Any)


@dataclass(kw_only=True, frozen=True)
class LrGridConfig(Checked):
    """A choice of the learning rate."""

    lr_grid: tuple[PositiveFloat, ...] | None = field(default=None, metadata=FREE)
    """Train once with each of these peak learning rates in place of --lr, in folders of their own under --output-dir
    and --save, where `best` leads to the best by the last evaluation on --valid-data; lr_grid.json has all; those
    that diverge count as the worst. Hold out training questions for that, not those that results are reported on."""
    lr_grid_metric: str = field(default="loss", metadata=FREE)
    """What the best is best in: a figure of metrics.json, without valid_, such as loss, recall@5 or exact_match."""


def train_grid(train: Callable[[Job], bool], config: Job, topology: ProcessTopology) -> bool:
    """Train with each rate of `config.training.grid`; the same command continues where it stopped.

    Args:
        train: runs a configuration, and says whether it came to the end.

    Returns:
        Whether all of them did.

    Raises:
        ConfigError: the runs do not measure what is to be chosen by.
        RunDivergedError: they diverge at all rates; at some of them, these count as the worst.
    """
    grid, runs = config.training.grid, list[dict[str, Any]]()
    save = config.training.save
    if save.load not in (None, save.save):
        raise ConfigError(
            f"--load {save.load}: each rate of --lr-grid resumes its own run, below --save; start from a checkpoint by "
            "--pretrained-checkpoint."
        )
    for lr in sorted(set(grid.lr_grid)):
        own = _with_rate(config, lr)
        folder = Path(own.training.log.output_dir)
        has_diverged = False
        try:
            if not train(own):
                return False
        except RunDivergedError as error:
            log.warning("--lr-grid: training diverged at %g: %s", lr, error)
            has_diverged = True
        runs.append({"lr": lr, "output_dir": str(folder), "checkpoints": own.training.save.save})
        note = partial(_note, folder, grid.lr_grid_metric, runs, has_diverged=has_diverged)
        on_first_rank(note, topology.world_group)
    if all(run["diverged"] for run in runs):
        rates = " ".join(f"{run['lr']:g}" for run in runs)
        raise RunDivergedError(
            f"--lr-grid {rates}: training diverged at every rate, or left no finite {grid.lr_grid_metric}; "
            "give lower ones."
        )
    return True


def _note(folder: Path, metric: str, runs: list[dict[str, Any]], *, has_diverged: bool) -> None:
    """Add the newest run's figures to it, and write down what is known so far."""
    runs[-1] |= {"value": None, "ci95": None} if has_diverged else _measured(folder, metric)
    runs[-1]["diverged"] = runs[-1]["value"] is None
    best = _best(runs, metric)
    if best and best["checkpoints"]:
        checkpoints = Path(best["checkpoints"])
        link(checkpoints, checkpoints.parent / BEST)
    write_json(folder.parent / GRID, {"metric": metric, "best": best, "runs": runs})
    figures = ", ".join(f"{run['lr']:g}: " + ("diverged" if run["diverged"] else f"{run['value']:.4g}") for run in runs)
    log.info("%s by learning rate: %s; best: %s", metric, figures, f"{best['lr']:g}" if best else "none")


def _with_rate(config: Job, lr: float) -> Job:
    """A run with one rate, in a folder of its own, which it resumes."""
    training = config.training
    name = f"lr-{lr:g}"
    save = None if training.save.save is None else str(Path(training.save.save) / name)
    own = dataclasses.replace(
        training,
        optimizer=dataclasses.replace(training.optimizer, lr=lr),
        log=dataclasses.replace(training.log, output_dir=str(Path(training.log.output_dir) / name)),
        save=dataclasses.replace(training.save, save=save, load=save),
        grid=LrGridConfig(),
    )
    job = dataclasses.replace(config, training=own)
    # a run that is continued has the shape of its checkpoint, as when it is continued for itself
    continues = own.save.resume_folder is not None and hasattr(job, "with_artefact_defaults")
    return job.with_artefact_defaults() if continues else job


def _measured(folder: Path, metric: str) -> dict[str, Any]:
    """The figure of a finished run with its interval; None: it is not finite."""
    path = folder / "metrics.json"
    metrics = read_json(path) if path.exists() else {}
    name = f"valid_{metric}"
    value = metrics.get(name, "")
    if not isinstance(value, float | int | None):
        known = sorted(key.removeprefix("valid_") for key, value in metrics.items() if isinstance(value, float))
        raise ConfigError(
            f"--lr-grid-metric {metric}: {path} has {', '.join(known) or 'nothing'}; choose one of them, or give "
            "--valid-data or --eval-questions that measure it."
        )
    is_finite = value is not None and math.isfinite(value)
    return {"value": value if is_finite else None, "ci95": metrics.get(f"{name}_ci95") if is_finite else None}


def _best(runs: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The run with the best figure; of equal ones that with the lowest rate. None: all have diverged."""
    sign = 1 if any(word in metric for word in _LOW_IS_GOOD) else -1
    finite = (run for run in runs if not run["diverged"])
    return min(finite, key=lambda run: (sign * run["value"], run["lr"]), default=None)
