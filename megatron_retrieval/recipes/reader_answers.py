"""How readers answer, and how they lay out what they read, where flags must do for readers of any kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_retrieval.config.parser import from_flat_dict, to_flat_dict
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig
from megatron_retrieval.evaluation.extractive_answers import ExtractiveAnswerConfig, SpanChoiceConfig
from megatron_retrieval.models.generation import BeamSearchConfig, GenerationConfig


@dataclass(kw_only=True, frozen=True)
class ReaderAnswersConfig:
    """How a reader answers."""

    max_answer_length: int | None = None
    """Longest answer, in tokens; default: 10 of extractive readers, 32 with the end token of readers that write."""
    choice: SpanChoiceConfig = field(default_factory=SpanChoiceConfig)
    search: BeamSearchConfig = field(default_factory=BeamSearchConfig)

    def extractive(self) -> ExtractiveAnswerConfig:
        """How an extractive reader answers."""
        return ExtractiveAnswerConfig(**asdict(self.choice), **self._length())

    def generation(self) -> GenerationConfig:
        """How a reader that writes answers."""
        return GenerationConfig(**asdict(self.search), **self._length())

    def _length(self) -> dict[str, Any]:
        return {} if self.max_answer_length is None else {"max_answer_length": self.max_answer_length}


@dataclass(kw_only=True, frozen=True)
class AnyFormatConfig(FusionFormatConfig, ExtractiveFormatConfig):
    """Layout of a question together with a passage; prefixes are of readers that write."""

    def __post_init__(self) -> None:
        """What a layout needs is known with the kind of reader."""

    def fusion(self) -> FusionFormatConfig:
        """For a reader that writes."""
        return from_flat_dict(FusionFormatConfig, to_flat_dict(self))

    def extractive(self) -> ExtractiveFormatConfig:
        """For an extractive reader."""
        return from_flat_dict(ExtractiveFormatConfig, to_flat_dict(self))
