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
from megatron_retrieval.readers.left_open import LeftOpenConfig, ScoresOf
from megatron_retrieval.readers.registry import describe_reader
from megatron_retrieval.readers.settings import ReaderAnswersConfig, ReaderSettings
from megatron_retrieval.retrieval.encode_batches import EncodeConfig


@dataclass(kw_only=True, frozen=True)
class ReaderConfig:
    """Which reader answers, and how."""

    reader: Path = field(metadata=formerly("load"))
    """Checkpoint of the reader."""
    answers: ReaderAnswersConfig = field(default_factory=ReaderAnswersConfig)
    left_open: LeftOpenConfig = field(default_factory=LeftOpenConfig)
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
    scores_of: ScoresOf = "other",
    prompt: PromptFormatConfig | None = None,
) -> AnsweringReader:
    """Load the reader at this topology.

    Args:
        reading: the passages that it will be given; None: any.
        scores_of: what their scores are of.
        prompt: layout of a causal reader that is to do something else than to answer.

    Raises:
        CheckpointError: no reader there.
        ConfigError: the reader needs passages, and --closed-book is set; the passages have no room in its prompt; or a
            flag contradicts what its checkpoint states, or is of other readers.
    """
    kind, saved = describe_reader(config.reader)
    if reading is not None and kind.needs_passages:
        reading.require_passages()
    layout = config.left_open.over(kind.layout(), saved)
    if prompt and kind.layout is PromptFormatConfig:
        layout = prompt
    scores = config.left_open.scores(saved, scores_of)
    settings = ReaderSettings(saved.shape, layout, config.answers.of(kind.answers, kind.name), config.fusion)
    reader = kind.open(saved, settings, topology, config.encode.on(topology.device))
    if reading is not None:
        reader.require_room(reading.num_read, scores)
    reader.load_saved(saved)
    reader.model.eval()
    protocol = {
        "reader": saved.manifest.kind,
        "reader_fingerprint": saved.fingerprint,
        **recorded(settings.answers, settings.layout, scores),
        **reader.recorded(scores),
    }
    return AnsweringReader(reader.answerer(scores, config.encode.micro_batch_size), protocol)
