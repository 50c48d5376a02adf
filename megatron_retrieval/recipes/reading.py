"""A reader's checkpoint opened to answer questions, whatever kind of reader it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.extractive_reader import load_extractive_reader
from megatron_retrieval.config import to_flat_dict
from megatron_retrieval.data.reader_questions import PassagesToReadConfig
from megatron_retrieval.evaluation.extractive_answers import ExtractiveAnswerConfig, ExtractiveAnswerer
from megatron_retrieval.evaluation.reader_task import Reader
from megatron_retrieval.parallel import ProcessTopology
from megatron_retrieval.retrieval import EncodeConfig
from megatron_retrieval.tokenizers import WordPieceTokenizer


@dataclass(kw_only=True, frozen=True)
class ReaderConfig:
    """Which reader answers, and how."""

    load: Path
    """Checkpoint of the reader."""
    answers: ExtractiveAnswerConfig = field(default_factory=ExtractiveAnswerConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)


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
    reading.require_passages()
    loaded = load_extractive_reader(config.load, topology, config.encode.dtype)
    description = loaded.description
    reader = ExtractiveAnswerer(
        loaded.model,
        WordPieceTokenizer(description.vocab_file, description.lower_case),
        description.layout,
        config.answers,
        device=topology.device,
        micro_batch_size=config.encode.micro_batch_size,
    )
    settings = to_flat_dict(config.answers) | to_flat_dict(description.layout)
    protocol = {name.replace("-", "_"): value for name, value in settings.items()}
    return OpenReader(reader, {"reader": description.kind, "reader_fingerprint": description.fingerprint, **protocol})
