"""One training run for each of several learning rates, and the choice among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from megatron_retrieval.config.checks import Checked, PositiveFloat
from megatron_retrieval.config.marks import FREE
from megatron_retrieval.errors import ConfigError
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
    and --save, where `best` leads to the best by the last evaluation on --valid-data; lr_grid.json has all. Hold out
    training questions for that, not those that results are reported on."""
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
        if not train(own):
            return False
        runs.append({"lr": lr, "output_dir": str(folder), "checkpoints": own.training.save.save})
        on_first_rank(partial(_note, folder, grid.lr_grid_metric, runs), topology.world_group)
    return True


def _note(folder: Path, metric: str, runs: list[dict[str, Any]]) -> None:
    """Add the newest run's figures to it, and write down what is known so far."""
    runs[-1] |= _measured(folder, metric)
    best = _best(runs, metric)
    if best["checkpoints"]:
        checkpoints = Path(best["checkpoints"])
        link(checkpoints, checkpoints.parent / BEST)
    write_json(folder.parent / GRID, {"metric": metric, "best": best, "runs": runs})
    figures = ", ".join(f"{run['lr']:g}: {run['value']:.4g}" for run in runs)
    log.info("%s by learning rate: %s; best: %g", metric, figures, best["lr"])


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
    """The figure of a finished run, and what the run took."""
    path = folder / "metrics.json"
    metrics = read_json(path) if path.exists() else {}
    name = f"valid_{metric}"
    if not isinstance(metrics.get(name), float | int):
        known = sorted(key.removeprefix("valid_") for key, value in metrics.items() if isinstance(value, float))
        raise ConfigError(
            f"--lr-grid-metric {metric}: {path} has {', '.join(known) or 'nothing'}; choose one of them, or give "
            "--valid-data or --eval-questions that measure it."
        )
    return {"value": metrics[name], "ci95": metrics.get(f"{name}_ci95")}


def _best(runs: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The run with the best figure; of equal ones that with the lowest rate."""
    sign = 1 if any(word in metric for word in _LOW_IS_GOOD) else -1
    return min(runs, key=lambda run: (sign * run["value"], run["lr"]))
