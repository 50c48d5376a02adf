"""The settings that every training run shares, and what puts a run together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.examples.batches import (
    BatchLoader,
    BatchSource,
    Bundles,
    EpochSampler,
    Sampler,
    batches_in_order,
)
from megatron_retrieval.data.examples.data_sets import DataSets, DataSetSampler
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.adapters import LoraConfig
from megatron_retrieval.parallel.collectives import gather_objects, on_first_rank
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.training.best_figure import BestFigure
from megatron_retrieval.training.callbacks import (
    EvalConfig,
    EvaluateBatches,
    EvaluateTask,
    MeasuredTask,
    SaveCheckpoints,
)
from megatron_retrieval.training.learning_rate import ScheduleConfig
from megatron_retrieval.training.lr_grid import LrGridConfig
from megatron_retrieval.training.made_with import MadeWith
from megatron_retrieval.training.metrics_log import LogConfig, MetricsLog
from megatron_retrieval.training.resume import Resumable, RunCheckpoints, SaveConfig, SavedModel
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
    grid: LrGridConfig = field(default_factory=LrGridConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def num_steps(self, num_examples: int) -> int:
        """Training steps over `num_examples` examples; the uneven last batch of an epoch is a step too."""
        return self.train_iters or self.epochs * math.ceil(num_examples / self.global_batch_size)


class TrainingJob(Protocol):
    """What the configuration of a training job has, whatever is trained."""

    @property
    def training(self) -> TrainingConfig: ...


class TrainingRun:
    """Puts a run together: first model and optimizer, then callbacks, then what a checkpoint to resume says, then the
    trainer.

        run = TrainingRun(job, topology, model, saved)
        run.add(callback)
        run.evaluate(held_out)
        run.resume()
        run.trainer(step, examples).fit()

    Attributes:
        optimizer: over the model's weights.
        metrics_log: where callbacks write.
        iteration: steps taken so far; None before `resume`.

    Args:
        job: its configuration, which checkpoints keep.
        model: with the weights that training starts from; `resume` replaces them.
        saved: what checkpoints hold beside tensors.
        rate_multipliers: of the learning rate, by the beginning of the parameters' names, in which * is anything.
    """

    def __init__(
        self,
        job: TrainingJob,
        topology: ProcessTopology,
        model: nn.Module,
        saved: SavedModel,
        rate_multipliers: Mapping[str, float] | None = None,
    ) -> None:
        config = job.training
        self._config, self._topology, self._model = config, topology, model
        self._data_parallel = DataParallelModel(model, topology)
        self.optimizer = Optimizer(self._data_parallel, config.optimizer, config.precision, topology, rate_multipliers)
        self.metrics_log = MetricsLog(config.log, config.global_batch_size, topology.is_main)
        self.iteration: int | None = None
        identity = {"--seed": config.seed, "--global-batch-size": config.global_batch_size, **saved.identity}
        self._saved, self._made_with = saved, MadeWith.of(job, identity, saved.config)
        self._callbacks: list[Callback] = [self.metrics_log]
        self._best: BestFigure | None = None

    def add(self, callback: Callback) -> None:
        """Have the trainer call this, after those that were added before; saving comes last.

        Checkpoints keep the state of a callback that is `Resumable`.
        """
        if self.iteration is not None:
            raise RuntimeError("callbacks are added before resume(), which gives them their states back")
        self._callbacks.append(callback)

    def evaluate(self, held_out: BatchSource[Any] | None, tasks: Sequence[MeasuredTask] = ()) -> None:
        """Have held-out examples evaluated, in their order, and the model put to tasks, every `--eval-interval`."""
        config, topology = self._config, self._topology
        if held_out is not None:
            batches = batches_in_order(
                held_out, config.global_batch_size, topology.dp_rank, topology.dp_size, config.evaluation.eval_iters
            )
            self.add(EvaluateBatches(batches, config.evaluation.eval_interval, self.metrics_log))
        for task in tasks:
            self.add(EvaluateTask(task, config.evaluation.eval_interval, self.metrics_log))

    def resume(self) -> None:
        """Continue from the checkpoint that `--load` names, or where it is damaged from the newest whole one; nothing
        where there is none.

        Raises:
            CheckpointError: it does not fit the model.
            ConfigError: it comes from a run that learns from something else.
        """
        self._follow_best()
        group = self._topology.world_group
        folder = gather_objects(on_first_rank(self._config.save.whole_resume_folder, group), group)[0]
        self.iteration = self._checkpoints().resume(folder) if folder else 0

    def _follow_best(self) -> None:
        """Behind all that evaluates."""
        config = self._config.evaluation
        if (name := config.best_metric) is None:
            return
        if not any(isinstance(callback, EvaluateBatches | EvaluateTask) for callback in self._callbacks):
            raise ConfigError(f"--best-metric {name}: there is nothing held out to evaluate on.")
        self._best = BestFigure(name, config.early_stopping_patience, self.metrics_log, self._topology)
        self.add(self._best)

    def trainer(
        self,
        step: StepModule,
        examples: BatchSource[Any],
        bundles: Bundles | None = None,
        data_sets: DataSets | None = None,
    ) -> Trainer:
        """What runs the steps that are left.

        Args:
            bundles: of examples that belong into one batch, see `EpochSampler`.
            data_sets: what the examples are divided into, each batch being of one of them.
        """
        if self.iteration is None:
            raise RuntimeError("resume() comes before trainer()")
        config, topology = self._config, self._topology
        size, seed = config.global_batch_size, config.seed
        sampler: Sampler = EpochSampler(len(examples), size, seed, bundles=bundles)
        if data_sets is not None:
            sampler = DataSetSampler(data_sets, size, seed, bundles=bundles)
        train_iters = config.num_steps(len(examples))
        callbacks = list(self._callbacks)
        if config.save.save is not None:
            callbacks.append(SaveCheckpoints(self._checkpoints(), config.save.save_interval, self._best))
        return Trainer(
            model=self._data_parallel,
            step=step,
            optimizer=self.optimizer,
            batches=BatchLoader(examples, sampler, topology.dp_rank, topology.dp_size).iterate,
            learning_rate=lambda i: config.schedule.rate(i, train_iters, config.optimizer.lr),
            train_iters=train_iters,
            topology=topology,
            callbacks=callbacks,
            iteration=self.iteration,
        )

    def _checkpoints(self) -> RunCheckpoints:
        resumables = [callback for callback in self._callbacks if isinstance(callback, Resumable)]
        return RunCheckpoints(
            self._model, self.optimizer, self._saved, self._made_with, self._config.save, self._topology, resumables
        )
