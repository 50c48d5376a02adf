"""Readers as parts of end-to-end training, one class for each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from megatron_retrieval.checkpoint.kinds import extractive_reader, fusion_reader
from megatron_retrieval.checkpoint.kinds.any_reader import ReaderDescription
from megatron_retrieval.checkpoint.kinds.architectures import ReaderModel
from megatron_retrieval.checkpoint.kinds.extractive_reader import (
    ExtractiveReaderDescription,
    extractive_reader_checkpoint_config,
)
from megatron_retrieval.checkpoint.kinds.fusion_reader import FusionReaderDescription
from megatron_retrieval.checkpoint.store.reader import load_weights
from megatron_retrieval.checkpoint.store.writer import ModelPart
from megatron_retrieval.data.examples.retrieved_extractive import RetrievedAnswers
from megatron_retrieval.data.examples.retrieved_fusion import RetrievedTexts
from megatron_retrieval.data.layouts.fusion import FusionLayout
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.evaluation.extractive_answers import ExtractiveAnswerer
from megatron_retrieval.evaluation.generated_answers import FusionAnswerer
from megatron_retrieval.evaluation.reader_task import Reader
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.end_to_end.config import EndToEndFinetuneConfig
from megatron_retrieval.recipes.lengths import require_positions, require_reading_positions
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.steps.end_to_end_objectives import require_passes
from megatron_retrieval.training.steps.readings import ExtractiveReadings, FusionReadings, ReaderSide
from megatron_retrieval.utils.logging import get_logger

log = get_logger("train")


class ReaderPart(Protocol):
    """A reader in training, whatever its kind.

    Attributes:
        model: begins with the weights of the starting point; where a run is resumed they are overwritten.
        vocabulary: of the reader.
    """

    @property
    def model(self) -> ReaderModel | ExtractiveReader: ...
    @property
    def vocabulary(self) -> Vocabulary: ...

    def readings(self, evidence: EvidenceStore) -> ReaderSide:
        """For the step."""
        ...

    def answerer(self, scores: PassageScoreConfig) -> Reader:
        """What answers with the weights of the moment, and the passages' scores used like that."""
        ...

    def saved(self, scores: Callable[[], PassageScoreConfig]) -> ModelPart:
        """What checkpoints keep beside the weights, given how scores are used at the moment."""
        ...


class FusionPart:
    """A reader that writes; see ReaderPart.

    Raises:
        ConfigError: sequences longer than its positions, or no room for passages.
        CheckpointError: its weights cannot be used.
    """

    def __init__(
        self, config: EndToEndFinetuneConfig, start: FusionReaderDescription, topology: ProcessTopology
    ) -> None:
        self._start, self._topology = start, topology
        self._shape, self._generation = config.model.over(start.config), config.answers.generation()
        require_reading_positions(self._shape, config.layout, self._generation)
        self.vocabulary = start.vocabulary()
        self._layout = FusionLayout(config.layout.fusion(), self.vocabulary)
        build = start.architecture.build
        self.model: ReaderModel = build(self._shape, self.vocabulary, topology, config.training.precision.dtype)
        load_weights(start.folder, start.manifest, self.model, topology)
        self._reader = FusionReader(self.model, config.encode)
        log.info("reader: scores enter the decoder's attention in the form %r", self._reader.score_form)

    def readings(self, evidence: EvidenceStore) -> FusionReadings:
        """See ReaderPart."""
        longest = self._generation.max_answer_length
        texts = RetrievedTexts(evidence, self._layout, self.vocabulary, max_answer_length=longest)
        return FusionReadings(self._reader, texts, self._topology)

    def answerer(self, scores: PassageScoreConfig) -> FusionAnswerer:
        """See ReaderPart."""
        return FusionAnswerer(
            self._reader, self.vocabulary, self._layout, self._generation, self._topology, passage_scores=scores
        )

    def saved(self, scores: Callable[[], PassageScoreConfig]) -> ModelPart:
        """See ReaderPart."""
        start, shape, layout = self._start, self._shape, self._layout.config
        return ModelPart(fusion_reader.KIND, lambda: start.reader_config(shape, layout, scores()), start.assets())


class ExtractivePart:
    """A reader that points to its answers; see ReaderPart.

    Its head for selecting passages is frozen: the retriever does that now, and weight decay would wear it down.

    Raises:
        ConfigError: sequences longer than its positions.
        CheckpointError: its weights cannot be used.
    """

    def __init__(
        self, config: EndToEndFinetuneConfig, start: ExtractiveReaderDescription, topology: ProcessTopology
    ) -> None:
        self._topology, self._batch_size = topology, config.encode.encode_batch_size
        self._shape, self._answers = config.model.over(start.config), config.answers.extractive()
        self._layout = config.layout.extractive()
        require_positions(self._shape, reader_seq_length=self._layout.reader_seq_length)
        self.vocabulary, self._lower_case = start.vocabulary(), start.lower_case
        self.model = ExtractiveReader(self._shape, topology, config.training.precision.dtype)
        load_weights(start.folder, start.manifest, self.model, topology)
        self.model.selection.requires_grad_(False)

    def readings(self, evidence: EvidenceStore) -> ExtractiveReadings:
        """See ReaderPart."""
        longest = self._answers.max_answer_length
        answers = RetrievedAnswers(evidence, self._layout, self.vocabulary, max_answer_length=longest)
        return ExtractiveReadings(self.model, answers, self._topology, batch_size=self._batch_size)

    def answerer(self, scores: PassageScoreConfig) -> ExtractiveAnswerer:
        """See ReaderPart."""
        return ExtractiveAnswerer(
            self.model,
            self.vocabulary,
            self._layout,
            self._answers,
            device=self._topology.device,
            passage_scores=scores,
        )

    def saved(self, scores: Callable[[], PassageScoreConfig]) -> ModelPart:
        """See ReaderPart."""
        settings = self._shape, self._layout, self._lower_case
        return ModelPart(
            extractive_reader.KIND,
            lambda: extractive_reader_checkpoint_config(*settings, scores()),
            self.vocabulary.assets(),
        )


def reader_part(config: EndToEndFinetuneConfig, start: ReaderDescription, topology: ProcessTopology) -> ReaderPart:
    """The part for the kind of reader.

    Raises:
        ConfigError: an objective that the reader cannot learn by; see also the parts.
        CheckpointError: its weights cannot be used.
    """
    is_extractive = isinstance(start, ExtractiveReaderDescription)
    side = ExtractiveReadings if is_extractive else FusionReadings
    require_passes(config.step.objective, side.passes, f"the {start.kind} {start.folder}")
    if isinstance(start, ExtractiveReaderDescription):
        return ExtractivePart(config, start, topology)
    return FusionPart(config, start, topology)
