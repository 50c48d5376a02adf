"""Extractive readers: BERT points to the answer in one of the passages (DPR, arXiv 2004.04906, section 6.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER, SPAN_READER
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.reader import ReaderModelKind
from megatron_retrieval.config.marks import INPUT
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
from megatron_retrieval.training.steps.extractive_readings import ExtractiveReadings, SelectingReadings
from megatron_retrieval.training.steps.extractive_step import ExtractiveStep, ExtractiveStepConfig
from megatron_retrieval.training.steps.readings import Pass


class OpenExtractiveReader(OpenReader):
    """See OpenReader."""

    checkpoints: ClassVar[ReaderModelKind[Any, Any, Any]] = EXTRACTIVE_READER
    readings: ClassVar[type[ExtractiveReadings]] = SelectingReadings
    model: ExtractiveReader

    def __init__(
        self,
        start: AnyDescription,
        settings: ReaderSettings,
        topology: ProcessTopology,
        dtype: torch.dtype,
        *,
        seed: int = 0,
    ) -> None:
        require_positions(settings.shape.max_positions, reader_seq_length=settings.layout.reader_seq_length)
        self.settings, self.topology = settings, topology
        self.vocabulary = start.vocabulary()
        special = self.vocabulary.special
        self.model = self.checkpoints.build(settings.shape, special, topology, dtype, seed=seed)

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

    def side(self, evidence: EvidenceStore, asked: frozenset[Pass]) -> ExtractiveReadings:
        """See OpenReader; the head that selects passages is frozen where the retriever does that: weight decay would
        wear it down."""
        if isinstance(self.model, ExtractiveReader) and "together" not in asked:
            self.model.selection.requires_grad_(False)
        longest = self.settings.answers.max_answer_length
        answers = RetrievedAnswers(evidence, self.settings.layout, self.vocabulary, max_answer_length=longest)
        batch_size = self.settings.encode.encode_batch_size
        return self.readings(self.model, answers, self.topology, batch_size=batch_size)


class OpenSpanReader(OpenExtractiveReader):
    """See OpenReader; first and last token of a span are judged together (ORQA)."""

    checkpoints, readings = SPAN_READER, ExtractiveReadings


@dataclass(kw_only=True, frozen=True)
class ExtractiveFinetuneConfig(ReaderFinetuneConfig[OpenExtractiveReader]):
    """Fine-tune an extractive reader: BERT that points to the answer in one of the passages (DPR)."""

    pretrained_checkpoint: str | None = field(default=None, metadata=INPUT)
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


EXTRACTIVE = ReaderKind(
    name="extractive",
    about="points to the answer in one of the passages (DPR)",
    passes=OpenExtractiveReader.readings.passes,
    needs_passages=True,
    layout=ExtractiveFormatConfig,
    answers=ExtractiveAnswerConfig,
    finetune=ExtractiveFinetuneConfig,
    open=OpenExtractiveReader,
)

#: trained with a retriever only
SPAN = ReaderKind(
    name="span",
    about="points to the answer, first and last token of a span judged together (ORQA)",
    passes=OpenSpanReader.readings.passes,
    needs_passages=True,
    layout=ExtractiveFormatConfig,
    answers=ExtractiveAnswerConfig,
    finetune=None,
    open=OpenSpanReader,
)
