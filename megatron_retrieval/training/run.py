"""The settings that every training run shares, and how a trainer is put together from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel import ParallelConfig, ProcessTopology
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.training.callbacks import (
    EvalConfig,
    EvaluateBatches,
    EvaluateTask,
    MeasuredTask,
    SaveCheckpoints,
)
from megatron_retrieval.training.metrics_log import LogConfig, MetricsLog
from megatron_retrieval.training.resume import RunCheckpoints, SaveConfig, SavedModel
from megatron_retrieval.training.schedule import ScheduleConfig
from megatron_retrieval.training.step import StepModule
from megatron_retrieval.training.trainer import Callback, Trainer


@dataclass(kw_only=True, frozen=True)
class TrainingConfig:
    """How long, with what, and where to."""

    global_batch_size: int = 128
    """Examples per step over all ranks; it defines the result, the number of ranks only the speed."""
    epochs: int = 40
    """Passes over the training examples."""
    train_iters: int | None = None
    """Steps to train; replaces --epochs."""
    seed: int = 1234
    """Names every random stream: initial weights, order of the data, sampled negatives, dropout."""
    log: LogConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "epochs", "train_iters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1.")

    def num_steps(self, num_examples: int) -> int:
        """Training steps over `num_examples` examples; the uneven last batch of an epoch is a step too."""
        return self.train_iters or self.epochs * math.ceil(num_examples / self.global_batch_size)


def build_trainer(
    config: TrainingConfig,
    topology: ProcessTopology,
    *,
    model: nn.Module,
    step: StepModule,
    num_examples: int,
    batches: Callable[[int], Iterator[Any]],
    valid_batches: Callable[[], Iterable[Any]] | None,
    saved: SavedModel,
    tasks: Sequence[MeasuredTask] = (),
) -> Trainer:
    """Wrap the model, resume where `--load` says so, and hang the usual callbacks on the trainer.

    Args:
        num_examples: training examples of one epoch.
        batches: `batches(i)` iterates over this rank's shares of the global batches i, i + 1, ...
        valid_batches: held-out batches, once through.
        saved: what checkpoints hold beside tensors.
        tasks: what the model is put to during training.
    """
    data_parallel = DataParallelModel(model, topology)
    optimizer = Optimizer(data_parallel, config.optimizer, config.precision, topology)
    checkpoints = RunCheckpoints(model, optimizer, saved, config.save, topology)
    resume_folder = config.save.resume_folder()
    train_iters = config.num_steps(num_examples)
    metrics_log = MetricsLog(config.log, config.global_batch_size, topology.is_main)
    callbacks: list[Callback] = []
    if valid_batches is not None:
        callbacks.append(EvaluateBatches(valid_batches, config.evaluation.eval_interval, metrics_log))
    callbacks += [EvaluateTask(task, config.evaluation.eval_interval, metrics_log) for task in tasks]
    if config.save.save is not None:
        callbacks.append(SaveCheckpoints(checkpoints.save, config.save.save_interval))
    return Trainer(
        model=data_parallel,
        step=step,
        optimizer=optimizer,
        batches=batches,
        learning_rate=lambda i: config.schedule.rate(i, train_iters, config.optimizer.lr),
        train_iters=train_iters,
        topology=topology,
        callbacks=[metrics_log, *callbacks],
        iteration=checkpoints.resume(resume_folder) if resume_folder else 0,
    )
