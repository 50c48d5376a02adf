"""A reader's checkpoint opened to answer questions, whatever kind of reader it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.kinds.any_reader import describe_reader
from megatron_retrieval.checkpoint.kinds.description import ModelDescription
from megatron_retrieval.checkpoint.kinds.extractive_reader import ExtractiveReaderDescription, load_extractive_reader
from megatron_retrieval.checkpoint.kinds.fusion_reader import FusionReaderDescription, load_fusion_reader
from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig, FusionLayout
from megatron_retrieval.evaluation.extractive_answers import ExtractiveAnswerer
from megatron_retrieval.evaluation.generated_answers import FusionAnswerer
from megatron_retrieval.evaluation.reader_task import Reader
from megatron_retrieval.evaluation.results import recorded
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig, FusionReader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.lengths import require_reading_positions
from megatron_retrieval.recipes.reader_answers import ReaderAnswersConfig
from megatron_retrieval.retrieval.batches import EncodeConfig


@dataclass(kw_only=True, frozen=True)
class ReaderConfig(ReaderAnswersConfig):
    """Which reader answers, and how."""

    load: Path
    """Checkpoint of the reader."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    fusion: FusionEncodeConfig = field(default_factory=FusionEncodeConfig)


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
    description = describe_reader(config.load)
    if isinstance(description, ExtractiveReaderDescription):
        reading.require_passages()
        return _open_extractive(config, description, topology)
    return _open_fusion(config, description, topology)


def _open_extractive(
    config: ReaderConfig, description: ExtractiveReaderDescription, topology: ProcessTopology
) -> OpenReader:
    answers = config.extractive()
    reader = ExtractiveAnswerer(
        load_extractive_reader(description.folder, topology, config.encode.dtype).model,
        description.vocabulary(),
        description.layout,
        answers,
        device=topology.device,
        passage_scores=description.passage_scores,
        micro_batch_size=config.encode.micro_batch_size,
    )
    return OpenReader(reader, _protocol(description, answers, description.layout, description.passage_scores))


def _open_fusion(config: ReaderConfig, description: FusionReaderDescription, topology: ProcessTopology) -> OpenReader:
    answers = config.generation()
    layout = description.layout or FusionFormatConfig()
    require_reading_positions(description.config, layout, answers)
    tokenizer = description.vocabulary()
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
