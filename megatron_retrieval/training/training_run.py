"""One training run from its configuration to its end, with what it leaves in its output folder."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from megatron_retrieval.config.parser import write_config
from megatron_retrieval.errors import RunDivergedError
from megatron_retrieval.parallel.collectives import any_rank
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.lr_grid import train_grid
from megatron_retrieval.training.run import TrainingJob
from megatron_retrieval.training.run_record import RUN_RECORD, RunRecord
from megatron_retrieval.training.trainer import Trainer
from megatron_retrieval.utils.files import read_json
from megatron_retrieval.utils.signals import SIGNAL_STATUS

Job = TypeVar("Job", bound=TrainingJob)


def run_training(build: Callable[[Job, ProcessTopology], Trainer], config: Job, topology: ProcessTopology) -> None:
    """Train to the end, or until a stop signal.

    In both cases config.yaml, metrics, a checkpoint (where `--save` asks for them) and the run record remain. SIGINT
    then ends the process with the shell's status for it, so that a script does not go on to its next command.

    Args:
        build: reads the data, builds the model and makes the trainer; what it refuses leaves at most the
            store of questions in the output folder.
    """
    if config.training.grid.lr_grid:
        train_grid(lambda own: _run(build, own, topology), config, topology)
    else:
        _run(build, config, topology)


def _run(build: Callable[[Job, ProcessTopology], Trainer], config: Job, topology: ProcessTopology) -> bool:
    """One run; whether it came to its end."""
    record = RunRecord(config, topology.world_size)
    folder = Path(config.training.log.output_dir)
    trainer = build(config, topology)
    if topology.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(config, folder / "config.yaml")
    earlier_seconds = _seconds_so_far(folder) if trainer.iteration else 0.0
    try:
        finished = trainer.fit()
    except RunDivergedError:
        _write(record, trainer, folder, finished=False, earlier_seconds=earlier_seconds)
        raise
    _write(record, trainer, folder, finished=finished, earlier_seconds=earlier_seconds)
    if any_rank(trainer.stop.number == signal.SIGINT, topology.world_group, topology.device):
        sys.exit(SIGNAL_STATUS + signal.SIGINT)
    return finished


def _write(record: RunRecord, trainer: Trainer, folder: Path, *, finished: bool, earlier_seconds: float) -> None:
    """Leave the run record."""
    if trainer.topology.is_main:
        record.write(folder, iterations=trainer.iteration, finished=finished, earlier_seconds=earlier_seconds)


def _seconds_so_far(folder: Path) -> float:
    """What the sessions of a run have taken that is continued, as far as they came to write it down."""
    path = folder / RUN_RECORD
    record = read_json(path) if path.exists() else {}
    return float(record.get("seconds", 0.0) + record.get("earlier_seconds", 0.0))
