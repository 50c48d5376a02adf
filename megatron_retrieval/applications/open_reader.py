"""Opens the checkpoint of any reader to answer questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_retrieval.config.marks import formerly
from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig
from megatron_retrieval.data.layouts.prompt import PromptFormatConfig
from megatron_retrieval.evaluation.reader_task import Reader
from megatron_retrieval.evaluation.retrieval_results import recorded
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.registry import describe_reader
from megatron_retrieval.readers.settings import ReaderAnswersConfig, ReaderSettings
from megatron_retrieval.retrieval.encode_batches import EncodeConfig


@dataclass(kw_only=True, frozen=True)
class ReaderConfig:
    """Which reader answers, and how."""

    reader: Path = field(metadata=formerly("load"))
    """Checkpoint of the reader."""
    answers: ReaderAnswersConfig = field(default_factory=ReaderAnswersConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    fusion: FusionEncodeConfig = field(default_factory=FusionEncodeConfig)


@dataclass(frozen=True)
class AnsweringReader:
    """A reader ready to answer.

    Attributes:
        protocol: settings that its answers depend on, for the record.
    """

    reader: Reader
    protocol: dict[str, Any]


def open_reader(
    config: ReaderConfig,
    reading: PassagesToReadConfig | None,
    topology: ProcessTopology,
    *,
    prompt: PromptFormatConfig | None = None,
) -> AnsweringReader:
    """Load the reader at this topology.

    Args:
        reading: the passages that it will be given; None: any.
        prompt: layout of a causal reader that is to do something else than to answer.

    Raises:
        CheckpointError: no reader there.
        ConfigError: the reader needs passages, and --closed-book is set; or the passages have no room in its prompt.
    """
    kind, saved = describe_reader(config.reader)
    if reading is not None and kind.needs_passages:
        reading.require_passages()
    layout = prompt if prompt and kind.layout is PromptFormatConfig else saved.layout or kind.layout()
    settings = ReaderSettings(saved.shape, layout, config.answers.of(kind.answers), config.fusion)
    reader = kind.open(saved, settings, topology, config.encode.on(topology.device))
    if reading is not None:
        reader.require_room(reading.num_read, saved.passage_scores)
    reader.load_saved(saved)
    reader.model.eval()
    protocol = {
        "reader": saved.manifest.kind,
        "reader_fingerprint": saved.fingerprint,
        **recorded(settings.answers, settings.layout, saved.passage_scores),
        **reader.recorded(saved.passage_scores),
    }
    return AnsweringReader(reader.answerer(saved.passage_scores, config.encode.micro_batch_size), protocol)
