"""A reader's checkpoint opened to answer questions, whatever kind of reader it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint import extractive_reader, fusion_reader
from megatron_retrieval.checkpoint.description import ModelDescription
from megatron_retrieval.checkpoint.extractive_reader import load_extractive_reader
from megatron_retrieval.checkpoint.fusion_reader import describe_fusion_reader, load_fusion_reader
from megatron_retrieval.checkpoint.manifest import read_manifest, resolve_checkpoint
from megatron_retrieval.data.fusion_layout import FusionFormatConfig, FusionLayout
from megatron_retrieval.data.reader_questions import PassagesToReadConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.evaluation.extractive_answers import (
    ExtractiveAnswerConfig,
    ExtractiveAnswerer,
    SpanChoiceConfig,
)
from megatron_retrieval.evaluation.generated_answers import FusionAnswerer
from megatron_retrieval.evaluation.reader_task import Reader
from megatron_retrieval.evaluation.results import recorded
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig, FusionReader
from megatron_retrieval.models.generation import BeamSearchConfig, GenerationConfig
from megatron_retrieval.parallel import ProcessTopology
from megatron_retrieval.recipes.lengths import require_reading_positions
from megatron_retrieval.retrieval import EncodeConfig
from megatron_retrieval.tokenizers import WordPieceTokenizer


@dataclass(kw_only=True, frozen=True)
class ReaderConfig:
    """Which reader answers, and how."""

    load: Path
    """Checkpoint of the reader."""
    max_answer_length: int | None = None
    """Longest answer, in tokens; default: 10 of extractive readers, 32 with the end token of readers that write."""
    choice: SpanChoiceConfig = field(default_factory=SpanChoiceConfig)
    search: BeamSearchConfig = field(default_factory=BeamSearchConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    fusion: FusionEncodeConfig = field(default_factory=FusionEncodeConfig)

    def extractive(self) -> ExtractiveAnswerConfig:
        """How an extractive reader answers."""
        return ExtractiveAnswerConfig(**asdict(self.choice), **self._length())

    def generation(self) -> GenerationConfig:
        """How a reader that writes answers."""
        return GenerationConfig(**asdict(self.search), **self._length())

    def _length(self) -> dict[str, Any]:
        return {} if self.max_answer_length is None else {"max_answer_length": self.max_answer_length}


@dataclass(frozen=True)
class OpenReader:
    """A reader ready to answer.

    Attributes:
        protocol: what its answers depend on, for the record.
    """

    reader: Reader
    protocol: dict[str, Any]


def open_reader(config: ReaderConfig, reading: PassagesToReadConfig, topology: ProcessTopology) -> OpenReader:
    """Load the reader at this topology.

    Args:
        reading: what it will be given.

    Raises:
        CheckpointError: no reader there.
        ConfigError: it needs passages and is to have none.
    """
    folder = resolve_checkpoint(config.load)
    kind = read_manifest(folder).kind
    if kind == extractive_reader.KIND:
        return _open_extractive(config, reading, topology)
    if kind in fusion_reader.READABLE_KINDS:
        return _open_fusion(config, topology)
    kinds = " or ".join((extractive_reader.KIND, fusion_reader.KIND))
    raise CheckpointError(f"{folder}: holds a {kind}, where a {kinds} is needed.")


def _open_extractive(config: ReaderConfig, reading: PassagesToReadConfig, topology: ProcessTopology) -> OpenReader:
    reading.require_passages()
    loaded = load_extractive_reader(config.load, topology, config.encode.dtype)
    description, answers = loaded.description, config.extractive()
    reader = ExtractiveAnswerer(
        loaded.model,
        WordPieceTokenizer(description.vocab_file, description.lower_case),
        description.layout,
        answers,
        device=topology.device,
        micro_batch_size=config.encode.micro_batch_size,
    )
    return OpenReader(reader, _protocol(description, answers, description.layout))


def _open_fusion(config: ReaderConfig, topology: ProcessTopology) -> OpenReader:
    description, answers = describe_fusion_reader(config.load, fusion_reader.READABLE_KINDS), config.generation()
    layout = description.layout or FusionFormatConfig()
    require_reading_positions(description.config, layout, answers)
    tokenizer = description.tokenizer()
    reader = FusionReader(load_fusion_reader(description, tokenizer, topology, config.encode.dtype), config.fusion)
    answerer = FusionAnswerer(
        reader,
        tokenizer,
        FusionLayout(layout, tokenizer),
        answers,
        topology,
        passage_scores=description.passage_scores,
        micro_batch_size=config.encode.micro_batch_size,
    )
    protocol = _protocol(description, answers, layout, description.passage_scores)
    return OpenReader(answerer, {**protocol, "score_attention": reader.score_form})


def _protocol(description: ModelDescription, *settings: Any) -> dict[str, Any]:
    return {"reader": description.kind, "reader_fingerprint": description.fingerprint, **recorded(*settings)}
