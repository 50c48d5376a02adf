"""The settings that every training run shares, and how a trainer is put together from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.examples.loader import BatchLoader, BatchSource, Bundles, EpochSampler, batches_in_order
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.training.callbacks import (
    EvalConfig,
    EvaluateBatches,
    EvaluateTask,
    MeasuredTask,
    SaveCheckpoints,
)
from megatron_retrieval.training.metrics_log import LogConfig, MetricsLog
from megatron_retrieval.training.resume import Resumable, RunCheckpoints, SaveConfig, SavedModel
from megatron_retrieval.training.schedule import ScheduleConfig
from megatron_retrieval.training.steps.step import StepModule
from megatron_retrieval.training.trainer import Callback, Trainer


@dataclass(kw_only=True, frozen=True)
class TrainingConfig(Checked):
    """How long, with what, and where to."""

    global_batch_size: PositiveInt = 128
    """Examples per step over all ranks; it defines the result, the number of ranks only the speed."""
    epochs: PositiveInt = 40
    """Passes over the training examples."""
    train_iters: PositiveInt | None = None
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

    def num_steps(self, num_examples: int) -> int:
        """Training steps over `num_examples` examples; the uneven last batch of an epoch is a step too."""
        return self.train_iters or self.epochs * math.ceil(num_examples / self.global_batch_size)


def build_trainer(
    config: TrainingConfig,
    topology: ProcessTopology,
    *,
    model: nn.Module,
    step: StepModule,
    examples: BatchSource[Any],
    held_out: BatchSource[Any] | None,
    saved: SavedModel,
    bundles: Bundles | None = None,
    tasks: Sequence[MeasuredTask] = (),
    further_callbacks: Callable[[Optimizer, MetricsLog], Sequence[Callback]] | None = None,
    rate_multipliers: Mapping[str, float] | None = None,
) -> Trainer:
    """Wrap the model, resume where `--load` says so, and hang the usual callbacks on the trainer.

    Args:
        examples: to train on.
        held_out: examples for evaluation, in their order.
        saved: what checkpoints hold beside tensors; seed and global batch size are added to its identity.
        bundles: see `EpochSampler`.
        tasks: what the model is put to during training.
        further_callbacks: makes callbacks that run before evaluation and saving; checkpoints keep the state of those
            that are `Resumable`.
        rate_multipliers: of the learning rate, by the beginning of the parameters' names.
    """
    seed, batch_size = config.seed, config.global_batch_size
    sampler = EpochSampler(len(examples), batch_size, seed, bundles=bundles)
    identity = {"--seed": seed, "--global-batch-size": batch_size, **saved.identity}
    data_parallel = DataParallelModel(model, topology)
    optimizer = Optimizer(data_parallel, config.optimizer, config.precision, topology, rate_multipliers)
    train_iters = config.num_steps(len(examples))
    metrics_log = MetricsLog(config.log, batch_size, topology.is_main)
    callbacks: list[Callback] = [*further_callbacks(optimizer, metrics_log)] if further_callbacks else []
    resumables = [callback for callback in callbacks if isinstance(callback, Resumable)]
    saved = replace(saved, identity=identity)
    checkpoints = RunCheckpoints(model, optimizer, saved, config.save, topology, resumables)
    resume_folder = config.save.resume_folder()
    if held_out is not None:
        valid_batches = batches_in_order(
            held_out, batch_size, topology.dp_rank, topology.dp_size, config.evaluation.eval_iters
        )
        callbacks.append(EvaluateBatches(valid_batches, config.evaluation.eval_interval, metrics_log))
    callbacks += [EvaluateTask(task, config.evaluation.eval_interval, metrics_log) for task in tasks]
    if config.save.save is not None:
        callbacks.append(SaveCheckpoints(checkpoints.save, config.save.save_interval))
    return Trainer(
        model=data_parallel,
        step=step,
        optimizer=optimizer,
        batches=BatchLoader(examples, sampler, topology.dp_rank, topology.dp_size).iterate,
        learning_rate=lambda i: config.schedule.rate(i, train_iters, config.optimizer.lr),
        train_iters=train_iters,
        topology=topology,
        callbacks=[metrics_log, *callbacks],
        iteration=checkpoints.resume(resume_folder) if resume_folder else 0,
    )
