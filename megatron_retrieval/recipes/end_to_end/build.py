"""Puts together what trains a retriever and a reader end to end, whatever they learn from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.store.base import BaseCheckpoint
from megatron_retrieval.checkpoint.store.fingerprint import weights_digest
from megatron_retrieval.checkpoint.store.writer import ModelPart
from megatron_retrieval.config.parser import overlaid
from megatron_retrieval.data.examples.batches import BatchSource
from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.layouts.lengths import require_positions
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.evaluation.reader_task import Reader
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.end_to_end import EndToEndModel
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.kind import OpenReader, ReaderKind
from megatron_retrieval.recipes.end_to_end.config import KIND, READER, RETRIEVER, EndToEndConfig
from megatron_retrieval.refresh.embedding_rank import supervise_worker
from megatron_retrieval.refresh.index_encoder import IndexEncoder
from megatron_retrieval.refresh.index_refresh import IndexRefresher
from megatron_retrieval.refresh.index_worker import worker_command
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.training.adapting import Adapted, adapt_to_train, lora_identity
from megatron_retrieval.training.callbacks import MeasuredTask
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingRun
from megatron_retrieval.training.steps.end_to_end_objectives import OBJECTIVES, require_passes
from megatron_retrieval.training.steps.end_to_end_step import EndToEndStep
from megatron_retrieval.training.steps.memoised_readings import MemoisedReadings, ReadingMemory
from megatron_retrieval.training.steps.passage_search import PassageSearch
from megatron_retrieval.training.steps.readings import ReaderSide
from megatron_retrieval.training.trainer import Callback, Trainer
from megatron_retrieval.training.training_run import run_training

Job = TypeVar("Job", bound=EndToEndConfig)


class EndToEndRun(ABC, Generic[Job]):
    """The parts of a run, made once and handed to one another; a job's own class says what is learned from.

    Raises:
        ConfigError: sequences longer than a model's positions, or an objective that the reader cannot learn by.
        CheckpointError, DataError: an input cannot be used.
        MismatchError: the evidence was tokenized with another vocabulary than the retriever's.
    """

    def __init__(self, config: Job, topology: ProcessTopology) -> None:
        self.config, self.topology = config, topology
        self.start_retriever = config.start_retriever
        # its prefixes are the retriever's own
        self.text_format = lengths = overlaid(self.start_retriever.layout, config.text_format)
        require_positions(
            self.start_retriever.shape.encoder.max_positions,
            query_seq_length=lengths.query_seq_length,
            retriever_seq_length=lengths.retriever_seq_length,
        )
        self.evidence = EvidenceStore(config.evidence)
        self.tokenizer = self.start_retriever.vocabulary()
        self.evidence.require_vocabulary(self.tokenizer, f"the retriever {self.start_retriever.folder}")
        self._adapted: dict[str, Adapted] = {}
        self.reader_kind, self.reader = self._open_reader()
        self.model = self._new_model()
        self.search = PassageSearch(
            config.search,
            self.model.retriever,
            self.evidence,
            self.text_format,
            topology,
            encode_batch_size=config.step.passage_batch_size,
            frozen=config.frozen.freeze_passage_encoder,
        )

    def trainer(self, memory: ReadingMemory | None = None) -> Trainer:
        """Everything, ready to train.

        Args:
            memory: what a frozen reader has read in runs before; None: there were none.
        """
        config, training = self.config, self.config.training
        examples, (held_out, tasks) = self.examples(), self.held_out()
        asked = OBJECTIVES[config.step.objective].needs
        self.reader.require_room(config.search.num_passages, None if "together" in asked else self.passage_scores())
        readings: ReaderSide = self.reader.side(self.evidence, asked)
        if config.freeze.freeze_reader:
            readings = MemoisedReadings(readings)
        rates = config.rates.multipliers(training.optimizer.lr)
        run = TrainingRun(config, self.topology, self.model, self._saved(len(examples)), rates)
        run.add(self._refresher(run))
        run.evaluate(held_out, tasks)
        step = EndToEndStep(self.model, readings, self.search, config.step, self.topology, training.seed)
        for callback in self.callbacks(run, step):
            run.add(callback)
        run.resume()
        if memory is not None and isinstance(readings, MemoisedReadings):
            readings.memos = memory.of(self.reader_identity())
        return run.trainer(step, examples)

    @abstractmethod
    def examples(self) -> BatchSource[AskedBatch]:
        """What is learned from."""

    def held_out(self) -> tuple[BatchSource[AskedBatch] | None, list[MeasuredTask]]:
        """What is evaluated now and then: examples, and tasks."""
        return None, []

    def callbacks(self, run: TrainingRun, step: EndToEndStep) -> list[Callback]:
        """Further periodic work."""
        return []

    def passage_scores(self) -> PassageScoreConfig:
        """What the reader does with the scores of passages, as it stands."""
        step, retriever = self.config.step, self.model.retriever
        scaling = step.scaling.over(retriever.config.normalize_embeddings)
        return PassageScoreConfig(
            passage_score_use=OBJECTIVES[step.objective].use_of_scores(step.of_objective),
            passage_score_weight=float(self.model.score_weight.detach()),
            passage_score_divisor=scaling.score_divisor(retriever.dimension),
        )

    def _open_reader(self) -> tuple[ReaderKind, OpenReader]:
        """With the weights of the start, unless the run is resumed, which loads them."""
        config = self.config
        kind, start = config.start_reader
        named = f"the {start.manifest.kind} {start.folder}"
        require_passes(config.step.objective, kind.passes, named, config.step.of_objective)
        settings = config.reader_settings(kind, start)
        dtype = config.training.precision.on(self.topology.device)
        reader = kind.open(start, settings, self.topology, dtype, seed=config.training.seed)
        if config.training.save.resume_folder is None:
            reader.load(start)
        saved = SavedModel(kind.checkpoints.name, reader.checkpoint_config(), reader.vocabulary.assets(), {})
        self._adapt(READER, reader.model, start, saved)
        return kind, reader

    def reader_identity(self) -> Hashable:
        """What the reader's likelihoods depend on beside question, answers and row, see `ReadingMemory`."""
        reader, asked = self.reader, OBJECTIVES[self.config.step.objective].needs
        return (
            self.reader_kind.name,
            *(repr(reader.settings), reader.vocabulary.fingerprint, self.evidence.fingerprint),
            weights_digest(reader.model, self.topology),
            *(self.config.training.precision.on(self.topology.device), *sorted(asked)),
        )

    def _new_model(self) -> EndToEndModel:
        """With the weights of the start, unless the run is resumed, which loads them."""
        config, topology = self.config, self.topology
        retriever = DualEncoder(self._retriever_shape(), topology, config.training.precision.on(topology.device))
        if config.training.save.resume_folder is None:
            DUAL_ENCODER.start(retriever, self.start_retriever, topology)
        config_of_encoder = DUAL_ENCODER.config(retriever.config, self.tokenizer, self.text_format)
        saved = SavedModel(DUAL_ENCODER.name, config_of_encoder, self.tokenizer.assets(), {})
        self._adapt(RETRIEVER, retriever, self.start_retriever, saved)
        return EndToEndModel(retriever, self.reader.model, config.frozen, first_score_weight=config.step.score_weight)

    def _adapt(self, name: str, model: nn.Module, start: AnyDescription, saved: SavedModel) -> None:
        """Give one of the two adapters, if it is to be trained by them or has some."""
        training = self.config.training
        self._adapted[name] = adapt_to_train(
            model, start, self.config.lora_of(name), saved, training.save, self.topology, seed=training.seed, name=name
        )

    def _retriever_shape(self) -> DualEncoderConfig:
        start = self.start_retriever.shape
        is_shared = start.biencoder_shared_query_context_model and not self.config.separate_encoders
        encoder = self.config.model.over(start.encoder)
        return replace(start, encoder=encoder, biencoder_shared_query_context_model=is_shared)

    def answerer(self) -> Reader:
        """What answers with the weights of the moment."""
        return self.reader.answerer(self.passage_scores())

    def _saved(self, num_questions: int) -> SavedModel:
        config = self.config
        retriever, reader = self._base(RETRIEVER, config.retriever), self._base(READER, config.reader)
        parts = {
            RETRIEVER: ModelPart(DUAL_ENCODER.name, self._retriever_config, self.tokenizer.assets(), retriever),
            READER: ModelPart(
                self.reader_kind.checkpoints.name, self._reader_config, self.reader.vocabulary.assets(), reader
            ),
        }
        frozen = {f"--{name.replace('_', '-')}": value for name, value in vars(config.frozen).items()}
        identity = {"number of training questions": num_questions, "--objective": config.step.objective, **frozen}
        for name, found in self._adapted.items():
            identity |= lora_identity(found.settings, f"{name}'s ")
        return SavedModel(KIND, {}, {}, identity, parts)

    def _base(self, name: str, start: Path) -> BaseCheckpoint | None:
        """What checkpoints share frozen weights with."""
        base = BaseCheckpoint(start) if self.config.share_frozen_weights else None
        return self._adapted[name].base or base

    def _retriever_config(self) -> dict[str, Any]:
        config = DUAL_ENCODER.config(self.model.retriever.config, self.tokenizer, self.text_format)
        return {**config, **self._adapted[RETRIEVER].settings}

    def _reader_config(self) -> dict[str, Any]:
        return {**self.reader.checkpoint_config(self.passage_scores()), **self._adapted[READER].settings}

    def _refresher(self, run: TrainingRun) -> IndexRefresher:
        config, training = self.config, self.config.training
        job = EmbeddingJob(
            evidence=self.evidence,
            encode=self.model.retriever.encode_passages,
            text_format=self.text_format,
            embedding_dtype=config.index.embedding_dtype,
            micro_batch_size=config.index.index_micro_batch_size,
        )
        encoder = IndexEncoder(
            self.model.retriever,
            lambda name: run.optimizer.main_weight(f"{RETRIEVER}.{name}"),
            job,
            self.topology,
            config=self._retriever_config(),
            assets=self.tokenizer.assets(),
        )
        return IndexRefresher(
            config.index,
            encoder,
            self.topology,
            index_dir=config.index.folder(training.log.output_dir),
            swap=partial(setattr, self.search, "index"),
            queries=lambda: self.search.last_queries,
            num_compared=config.search.num_passages,
            metrics_log=run.metrics_log,
            start_fingerprint=self.start_retriever.fingerprint,
            save_dir=training.save.save,
            worker_command=embedding_command(config, self.topology),
            has_embedding_ranks=config.parallel.num_embedding_ranks > 0,
        )


def embedding_command(config: EndToEndConfig, topology: ProcessTopology) -> list[str]:
    """What starts a process that embeds beside training; see `worker_command`."""
    return worker_command(
        config.index,
        index_dir=config.index.folder(config.training.log.output_dir),
        evidence=config.evidence,
        precision=config.training.precision,
        device=topology.device,
        num_workers=max(1, config.parallel.num_embedding_ranks),
    )


def run_end_to_end(build: Callable[..., Trainer], config: Job, topology: ProcessTopology) -> None:
    """What each process of a run does: it trains, or embeds beside those that train.

    Args:
        build: of configuration, topology and, by name, `memory`; see `EndToEndRun.trainer`.
    """
    if topology.side_rank is None:
        memory = None if config.training.grid.lr_grid is None else ReadingMemory()  # a single run needs no names
        run_training(partial(build, memory=memory), config, topology)
    else:
        folder = config.index.folder(config.training.log.output_dir)
        timeout_seconds = 60 * config.index.embedding_timeout_minutes
        supervise_worker(embedding_command(config, topology), folder, topology, timeout_seconds=timeout_seconds)
