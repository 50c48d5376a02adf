"""Extractive readers: BERT points to the answer in one of the passages (DPR, arXiv 2004.04906, section 6.1)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron_retrieval.checkpoint.kinds.extractive_reader import (
    KIND,
    ExtractiveReaderDescription,
    describe_extractive_reader,
    extractive_reader_checkpoint_config,
)
from megatron_retrieval.checkpoint.kinds.starting_point import (
    READER_STARTING_KINDS,
    describe_starting_point,
    load_starting_weights,
)
from megatron_retrieval.data.examples.extractive import ExtractiveDataset
from megatron_retrieval.data.examples.extractive_examples import ExtractiveDataConfig
from megatron_retrieval.data.examples.retrieved_extractive import RetrievedAnswers
from megatron_retrieval.data.files.passage_questions import ReaderTrainingDataConfig
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.lengths import require_positions
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.evaluation.extractive_answers import ExtractiveAnswerConfig, ExtractiveAnswerer
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.finetune import ReaderFinetuneConfig
from megatron_retrieval.readers.kind import OpenReader, ReaderKind
from megatron_retrieval.readers.settings import ReaderSettings
from megatron_retrieval.training.steps.extractive_step import ExtractiveStep, ExtractiveStepConfig
from megatron_retrieval.training.steps.readings import ExtractiveReadings


class OpenExtractiveReader(OpenReader):
    """See OpenReader."""

    model: ExtractiveReader

    def __init__(
        self,
        start: ExtractiveReaderDescription,
        settings: ReaderSettings,
        topology: ProcessTopology,
        dtype: torch.dtype,
        *,
        seed: int = 0,
    ) -> None:
        require_positions(settings.shape.max_positions, reader_seq_length=settings.layout.reader_seq_length)
        self.settings, self.topology = settings, topology
        self.vocabulary, self._lower_case = start.vocabulary(), start.lower_case
        self.model = ExtractiveReader(settings.shape, topology, dtype, seed=seed)

    def load(self, start: ExtractiveReaderDescription) -> None:
        """See OpenReader; from other models it takes the encoder."""
        load_starting_weights(describe_starting_point(start.folder, READER_STARTING_KINDS), self.model, self.topology)

    def answerer(self, scores: PassageScoreConfig | None = None, micro_batch_size: int = 128) -> ExtractiveAnswerer:
        """See OpenReader."""
        return ExtractiveAnswerer(
            self.model,
            self.vocabulary,
            self.settings.layout,
            self.settings.answers,
            device=self.topology.device,
            passage_scores=scores,
            micro_batch_size=micro_batch_size,
        )

    def side(self, evidence: EvidenceStore) -> ExtractiveReadings:
        """See OpenReader; the head that selects passages is frozen: the retriever does that now, and weight decay would
        wear it down."""
        self.model.selection.requires_grad_(False)
        longest = self.settings.answers.max_answer_length
        answers = RetrievedAnswers(evidence, self.settings.layout, self.vocabulary, max_answer_length=longest)
        batch_size = self.settings.encode.encode_batch_size
        return ExtractiveReadings(self.model, answers, self.topology, batch_size=batch_size)

    def checkpoint_config(self, scores: PassageScoreConfig | None = None) -> dict[str, Any]:
        """See OpenReader."""
        settings = self.settings
        return extractive_reader_checkpoint_config(settings.shape, settings.layout, self._lower_case, scores)


@dataclass(kw_only=True, frozen=True)
class ExtractiveFinetuneConfig(ReaderFinetuneConfig[OpenExtractiveReader]):
    """Fine-tune an extractive reader: BERT that points to the answer in one of the passages (DPR)."""

    pretrained_checkpoint: str | None = None
    """Checkpoint whose encoder, vocabulary and, if it is a reader, heads and layout training starts from: of a masked
    language model, a dual encoder (its passage tower) or a reader of this kind."""
    layout: ExtractiveFormatConfig = field(default_factory=ExtractiveFormatConfig)
    draw: ExtractiveDataConfig = field(default_factory=ExtractiveDataConfig)
    answers: ExtractiveAnswerConfig = field(default_factory=ExtractiveAnswerConfig)
    step: ExtractiveStepConfig = field(default_factory=ExtractiveStepConfig)

    @property
    def kind(self) -> ReaderKind:
        """See ReaderFinetuneConfig."""
        return EXTRACTIVE

    def examples(self, reader: OpenExtractiveReader, data: ReaderTrainingDataConfig) -> ExtractiveDataset:
        """See ReaderFinetuneConfig."""
        longest = self.answers.max_answer_length
        return ExtractiveDataset(
            data, self.draw, self.layout, reader.vocabulary, max_answer_length=longest, seed=self.training.seed
        )

    def step_module(self, reader: OpenExtractiveReader) -> ExtractiveStep:
        """See ReaderFinetuneConfig."""
        return ExtractiveStep(reader.model, self.step, reader.topology, self.training.seed)


def _describe(path: str | Path, kinds: Collection[str]) -> ExtractiveReaderDescription:
    start = describe_starting_point(path, kinds)
    if start.kind == KIND:
        return describe_extractive_reader(start.folder)
    return ExtractiveReaderDescription(start.folder, start.manifest, start.bert)


EXTRACTIVE = ReaderKind(
    name="extractive",
    about="points to the answer in one of the passages (DPR)",
    saved_as=KIND,
    reads=(KIND,),
    starts_from=READER_STARTING_KINDS,
    passes=ExtractiveReadings.passes,
    needs_passages=True,
    layout=ExtractiveFormatConfig,
    answers=ExtractiveAnswerConfig,
    finetune=ExtractiveFinetuneConfig,
    describe=_describe,
    open=OpenExtractiveReader,
)
