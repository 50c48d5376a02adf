"""Fusion readers: an encoder-decoder writes the answer from all passages (Izacard & Grave 2021, arXiv 2007.01282)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from megatron_retrieval.checkpoint.kinds.fusion_reader import FUSION_READER
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.examples.fusion import FusionDataset
from megatron_retrieval.data.examples.retrieved_fusion import RetrievedTexts
from megatron_retrieval.data.files.passage_questions import ReaderTrainingDataConfig
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig, FusionLayout
from megatron_retrieval.data.layouts.lengths import require_positions
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.generated_answers import GeneratedAnswerer
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig, FusionReader
from megatron_retrieval.models.generation import GenerationConfig
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.finetune import ReaderFinetuneConfig
from megatron_retrieval.readers.kind import OpenReader, ReaderKind
from megatron_retrieval.readers.settings import ReaderSettings
from megatron_retrieval.training.overrides import ModelOverridesConfig
from megatron_retrieval.training.steps.fusion_step import FusionStep, FusionStepConfig
from megatron_retrieval.training.steps.readings import FusionReadings, Pass
from megatron_retrieval.utils.logging import get_logger

log = get_logger("train")


class OpenFusionReader(OpenReader):
    """See OpenReader.

    Attributes:
        reader: the model as it reads several texts for each question.
        layout: for its vocabulary.
    """

    checkpoints = FUSION_READER

    def __init__(
        self,
        start: AnyDescription,
        settings: ReaderSettings,
        topology: ProcessTopology,
        dtype: torch.dtype,
        *,
        seed: int = 0,
    ) -> None:
        longest, longest_answer = settings.layout.reader_seq_length, settings.answers.max_answer_length
        require_positions(settings.shape.max_positions, reader_seq_length=longest, max_answer_length=longest_answer)
        self.settings, self.topology = settings, topology
        self.vocabulary = start.vocabulary()
        self.layout = FusionLayout(settings.layout, self.vocabulary)
        model = FUSION_READER.build(settings.shape, self.vocabulary.special, topology, dtype, seed=seed)
        self.model, self.reader = model, FusionReader(model, settings.encode)

    def answerer(self, scores: PassageScoreConfig | None = None, micro_batch_size: int = 128) -> GeneratedAnswerer:
        """See OpenReader."""
        return GeneratedAnswerer(
            self.reader,
            self.vocabulary,
            self.layout,
            self.settings.answers,
            self.topology,
            passage_scores=scores,
            micro_batch_size=micro_batch_size,
        )

    def side(self, evidence: EvidenceStore, asked: frozenset[Pass]) -> FusionReadings:
        """See OpenReader."""
        log.info("reader: scores enter the decoder's attention in the form %r", self.reader.score_form)
        longest = self.settings.answers.max_answer_length
        texts = RetrievedTexts(evidence, self.layout, self.vocabulary, max_answer_length=longest)
        return FusionReadings(self.reader, texts, self.topology)

    def recorded(self, scores: PassageScoreConfig) -> dict[str, Any]:
        """See OpenReader."""
        answers = self.settings.answers.resolved(scores)
        decoding = {name: getattr(answers, name) for name in ("answer_from", "marginal_decoding")}
        return {"score_attention": self.reader.score_form, **decoding}


@dataclass(kw_only=True, frozen=True)
class FusionModelConfig(ModelOverridesConfig):
    """What training may change of the model that it starts from."""

    decoder_num_layers: int | None = None
    """Transformer layers of the decoder where training starts from a BERT, which has none; default: as many as the
    encoder has."""


@dataclass(kw_only=True, frozen=True)
class FusionFinetuneConfig(ReaderFinetuneConfig[OpenFusionReader]):
    """Fine-tune an encoder-decoder to write answers from all passages of a question (fusion in the decoder)."""

    pretrained_checkpoint: str | None = field(default=None, metadata=INPUT)
    """Checkpoint whose weights, shape, vocabulary and, if it is a fusion reader, layout training starts from: of a T5,
    of a fusion reader, or of a BERT (a dual encoder's passage tower, a masked LM, an extractive reader), which becomes
    encoder and decoder."""
    model: FusionModelConfig = field(default_factory=FusionModelConfig)
    layout: FusionFormatConfig = field(default_factory=FusionFormatConfig)
    answers: GenerationConfig = field(default_factory=GenerationConfig)
    step: FusionStepConfig = field(default_factory=FusionStepConfig)
    encode: FusionEncodeConfig = field(default_factory=FusionEncodeConfig)

    @property
    def kind(self) -> ReaderKind:
        """See ReaderFinetuneConfig."""
        return FUSION

    def examples(self, reader: OpenFusionReader, data: ReaderTrainingDataConfig) -> FusionDataset:
        """See ReaderFinetuneConfig."""
        longest = self.answers.max_answer_length
        return FusionDataset(data, reader.layout, reader.vocabulary, max_answer_length=longest, seed=self.training.seed)

    def step_module(self, reader: OpenFusionReader) -> FusionStep:
        """See ReaderFinetuneConfig."""
        return FusionStep(reader.reader, self.step, reader.topology, self.training.seed)

    def settings(self, start: AnyDescription) -> ReaderSettings:
        """See ReaderFinetuneConfig.

        Raises:
            ConfigError: the start has a decoder, of another number of layers.
        """
        start_shape = FUSION_READER.shape_from(start)
        shape = self.model.over(start_shape)
        if start.kind.name in FUSION_READER.reads and shape.num_decoder_layers != start_shape.num_decoder_layers:
            raise ConfigError(
                f"--decoder-num-layers {self.model.decoder_num_layers}: the decoder of {start.folder} has "
                f"{start_shape.num_decoder_layers} layers; leave the flag out."
            )
        return ReaderSettings(shape, self.layout, self.answers, self.encode)


FUSION = ReaderKind(
    name="fusion",
    about="writes the answer from all passages together (fusion in the decoder)",
    passes=FusionReadings.passes,
    needs_passages=False,
    layout=FusionFormatConfig,
    answers=GenerationConfig,
    finetune=FusionFinetuneConfig,
    open=OpenFusionReader,
)
