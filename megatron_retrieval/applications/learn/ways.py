"""Ways in which an encoder learns from documents without labels: one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.search import SearchConfig
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.mean_of_weights import save_mean
from megatron_retrieval.checkpoint.store.folders import holds_checkpoints
from megatron_retrieval.data.examples.ict import IctDataConfig
from megatron_retrieval.data.layouts.blocks import BlockConfig
from megatron_retrieval.errors import StoppedError
from megatron_retrieval.parallel.optimizer import OptimizerConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes import ict_pretraining
from megatron_retrieval.training.learning_rate import ScheduleConfig
from megatron_retrieval.training.metrics_log import LogConfig
from megatron_retrieval.training.resume import SaveConfig
from megatron_retrieval.training.run import TrainingConfig
from megatron_retrieval.training.run_record import RUN_RECORD
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig
from megatron_retrieval.training.training_run import run_training
from megatron_retrieval.utils.files import read_json
from megatron_retrieval.utils.registry import Registry

MICRO_BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long an encoder is trained, with what, and where.

    Attributes:
        folder: for what is written; what was stopped finds there what it left.
        batch_size: examples per step.
        lr: peak learning rate.
    """

    folder: Path
    steps: int
    batch_size: int
    lr: float
    seed: int
    topology: ProcessTopology

    def config(self) -> TrainingConfig:
        """Settings of a run that continues what an earlier call left."""
        checkpoints = str(self.checkpoints)
        return TrainingConfig(
            global_batch_size=self.batch_size,
            train_iters=self.steps,
            seed=self.seed,
            log=LogConfig(output_dir=str(self.folder), log_interval=5, tensorboard=False),
            optimizer=OptimizerConfig(lr=self.lr),
            schedule=ScheduleConfig(lr_warmup_fraction=0.1),
            save=SaveConfig(load=checkpoints, save=checkpoints, save_interval=10, keep_last=1),
        )

    @property
    def checkpoints(self) -> Path:
        """Of the run."""
        return self.folder / "checkpoints"

    def run(self, build: Callable[[Any, ProcessTopology], Any], job: Any) -> Path:
        """Run a recipe to its end; returns the checkpoints.

        Raises:
            StoppedError: a signal ended it before.
        """
        run_training(build, job.with_artefact_defaults(), self.topology)
        if not read_json(self.folder / RUN_RECORD)["finished"]:
            raise StoppedError(f"{self.folder}: stopped while the encoder was trained; the same command continues.")
        return self.checkpoints


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What a way has to work with.

    Attributes:
        start: checkpoint of the dual encoder to begin from.
        passages: table of the passages to learn from (psgs.tsv); held-out ones are not among them.
        searched: these passages, perhaps among others, by the encoder to begin from.
        training: how long; its folder is the way's own.
        writer: checkpoint of a reader that writes questions.
        reranker: checkpoint of what sorts the passages that these questions find.
        make_corpus: returns the sentences of the passages (`CorpusStore`).
    """

    start: Path
    passages: Path
    searched: SearchConfig
    training: Training
    writer: Path | None
    reranker: Path | None
    make_corpus: Callable[[], Path]


@dataclass(frozen=True)
class Way:
    """A way to adapt an encoder.

    Attributes:
        about: what it learns from, in one clause.
        train: returns the checkpoint of the adapted encoder, which has the shape of the one that it began from.
    """

    name: str
    about: str
    train: Callable[[Adaptation], Path]


WAYS = Registry[Way]("way to adapt an encoder")


def run_ict(training: Training, corpus: Path, **start: Any) -> Path:
    """Inverse Cloze Task: a sentence finds the block that it was taken from (arXiv 1906.00300).

    Args:
        start: fields of `IctPretrainingConfig` that say what the encoder starts from.
    """
    config = ict_pretraining.IctPretrainingConfig(
        training=training.config(),
        contrastive=ContrastiveConfig(micro_batch_size=MICRO_BATCH_SIZE),
        data=IctDataConfig(blocks=BlockConfig(data_path=str(corpus), valid_fraction=0.0)),
        **start,
    )
    return training.run(ict_pretraining.build, config)


def train_ict(adaptation: Adaptation) -> Path:
    """See `run_ict`."""
    return run_ict(adaptation.training, adaptation.make_corpus(), pretrained_checkpoint=str(adaptation.start))


def train_ict_mean(adaptation: Adaptation) -> Path:
    """The mean of the weights before and after ICT: less is lost of what was known."""
    trained, output = train_ict(adaptation), adaptation.training.folder / "mean"
    if not holds_checkpoints(output):
        both = [DUAL_ENCODER.describe(path) for path in (adaptation.start, trained)]
        save_mean(both, output, adaptation.training.topology)
    return output


WAYS.add(Way("ict", "sentences find the text that they were taken from (ICT)", train_ict))
WAYS.add(Way("ict-mean", "the same; the result is the mean of the weights before and after", train_ict_mean))
