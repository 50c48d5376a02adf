"""A training run with next to no step, to see what its index does; a program of its own where processes matter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.index.exact.sharded import ShardedIndex
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.launch import run_distributed
from megatron_retrieval.parallel.topology import EmbeddingRanksConfig, ProcessTopology
from megatron_retrieval.refresh.config import IndexRefreshConfig
from megatron_retrieval.refresh.embedding_rank import supervise_worker
from megatron_retrieval.refresh.index_encoder import IndexEncoder
from megatron_retrieval.refresh.index_refresh import IndexRefresher
from megatron_retrieval.refresh.index_worker import worker_command
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.testing.tiny import random_texts, tiny_dual_encoder_config
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingConfig, TrainingRun
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer
from megatron_retrieval.types.metrics import Mean, Metrics

TEXT_FORMAT = TextFormatConfig(query_seq_length=12, retriever_seq_length=12)
NUM_COMPARED = 5


@dataclass(kw_only=True, frozen=True)
class RefreshedTrainingConfig(TrainingConfig):
    """Training beside which ranks may embed."""

    parallel: EmbeddingRanksConfig = field(default_factory=EmbeddingRanksConfig)


@dataclass(kw_only=True, frozen=True)
class RefreshedRunConfig:
    """A tiny dual encoder whose vectors shrink from step to step."""

    evidence: Path
    """Folder of the evidence; its vocabulary has at most 64 words."""
    step_seconds: float = 0.0
    """Each step takes at least so long."""
    num_changes: int | None = None
    """End after the index has changed so often."""
    training: RefreshedTrainingConfig
    refresh: IndexRefreshConfig = field(default_factory=IndexRefreshConfig)

    @property
    def parallel(self) -> EmbeddingRanksConfig:
        """For the launcher."""
        return self.training.parallel


class Examples:
    """A share of a batch is its size."""

    def __len__(self) -> int:
        return 64

    def batch(self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int, dp_size: int) -> int:
        return len(indices)


class ShrinkingStep:
    """The loss is the mean square of some texts' vectors, with dropout.

    Attributes:
        index: to be searched.
        queries: the vectors of the last step.
        num_changes: of the index.
    """

    def __init__(self, model: DualEncoder, topology: ProcessTopology, seconds: float) -> None:
        self._model, self._topology, self._seconds = model, topology, seconds
        self.index: ShardedIndex | None = None
        self.queries: Tensor | None = None
        self.num_changes = -1  # the first index is none

    def swap(self, index: ShardedIndex) -> None:
        self.index, self.num_changes = index, self.num_changes + 1

    def forward_backward(self, batch: int, iteration: int, loss_scale: float) -> Metrics:
        """See StepModule."""
        assert self.index is not None
        time.sleep(self._seconds)
        self._model.train()
        texts = random_texts(8, 12, iteration * 64 + self._topology.dp_rank).to(self._topology.device)
        queries, passages = self._model(texts, texts)
        loss = (queries.square().mean() + passages.square().mean()) / self._topology.dp_size
        (loss * loss_scale).backward()
        self.queries = queries.detach()
        return {"loss": Mean(loss, self._topology.dp_size)}

    def evaluate(self, batch: int) -> Metrics:
        """See StepModule."""
        raise NotImplementedError("this run holds nothing out")


class EndAfterChanges(Callback):
    """Lets training end when the index has changed often enough."""

    def __init__(self, step: ShrinkingStep, num_changes: int) -> None:
        self._step, self._num_changes = step, num_changes

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if self._step.num_changes >= self._num_changes:
            trainer.train_iters = report.iteration


@dataclass
class RefreshedRun:
    """A run and its parts."""

    trainer: Trainer
    step: ShrinkingStep
    model: DualEncoder
    refresher: IndexRefresher


def build(
    config: RefreshedRunConfig,
    topology: ProcessTopology,
    *,
    more: Sequence[Callback] = (),
    **settings: Any,
) -> RefreshedRun:
    """The trainer with its parts.

    Args:
        more: callbacks that run before the refresher.
        settings: further arguments of `IndexRefresher`.
    """
    training = config.training
    evidence = EvidenceStore(config.evidence)
    model = DualEncoder(tiny_dual_encoder_config(dropout=0.1), topology, training.precision.on(topology.device))
    step = ShrinkingStep(model, topology, config.step_seconds)
    vocabulary = evidence.vocabulary
    config_of_model = DUAL_ENCODER.config(model.config, vocabulary, TEXT_FORMAT)
    saved = SavedModel(DUAL_ENCODER.name, config_of_model, vocabulary.assets(), {})
    settings = {
        "worker_command": command(config, topology.device),
        "has_embedding_ranks": config.parallel.num_embedding_ranks > 0,
        **settings,
    }
    run = TrainingRun(config, topology, model, saved)
    job = EmbeddingJob(
        evidence=evidence,
        encode=model.encode_passages,
        text_format=TEXT_FORMAT,
        embedding_dtype=config.refresh.embedding_dtype,
        micro_batch_size=config.refresh.index_micro_batch_size,
    )
    encoder = IndexEncoder(model, run.optimizer.main_weight, job, topology, config=saved.config, assets=saved.assets)
    refresher = IndexRefresher(
        config.refresh,
        encoder,
        topology,
        index_dir=config.refresh.folder(training.log.output_dir),
        swap=step.swap,
        queries=lambda: step.queries,
        num_compared=NUM_COMPARED,
        metrics_log=run.metrics_log,
        save_dir=training.save.save,
        **settings,
    )
    ends = [] if config.num_changes is None else [EndAfterChanges(step, config.num_changes)]
    for callback in (*more, refresher, *ends):
        run.add(callback)
    run.resume()
    return RefreshedRun(run.trainer(step, Examples()), step, model, refresher)


def command(config: RefreshedRunConfig, device: torch.device) -> list[str]:
    """Starts a worker."""
    return worker_command(
        config.refresh,
        index_dir=config.refresh.folder(config.training.log.output_dir),
        evidence=config.evidence,
        precision=config.training.precision,
        device=device,
        num_workers=max(1, config.parallel.num_embedding_ranks),
    )


def main(config: RefreshedRunConfig, topology: ProcessTopology) -> None:
    if topology.side_rank is None:
        build(config, topology).trainer.fit()
    else:
        index_dir = config.refresh.folder(config.training.log.output_dir)
        timeout_seconds = 60 * config.refresh.embedding_timeout_minutes
        supervise_worker(command(config, topology.device), index_dir, topology, timeout_seconds=timeout_seconds)


if __name__ == "__main__":
    run_distributed(RefreshedRunConfig, main)
