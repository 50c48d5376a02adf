"""Settings of readers, where flags must do for readers of any kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_retrieval.config.parser import Config, overlaid, to_flat_dict
from megatron_retrieval.data.layouts.extractive import PassageSegmentConfig
from megatron_retrieval.data.layouts.fusion import PrefixConfig
from megatron_retrieval.data.layouts.lengths import ReaderLengthsConfig
from megatron_retrieval.data.layouts.prompt import PromptConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.extractive_answers import SpanChoiceConfig
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig
from megatron_retrieval.models.generation import BeamSearchConfig


@dataclass(kw_only=True, frozen=True)
class ReaderAnswersConfig:
    """How a reader answers."""

    max_answer_length: int | None = None
    """Longest answer, in tokens; default: 10 of extractive readers, 32 with the end token of readers that write."""
    choice: SpanChoiceConfig = field(default_factory=SpanChoiceConfig)
    search: BeamSearchConfig = field(default_factory=BeamSearchConfig)

    def of(self, config_class: type[Config], reader: str) -> Config:
        """What of it a kind of reader has, with the kind's own defaults.

        Args:
            reader: the kind's name, for the message.

        Raises:
            ConfigError: a choice or a search is asked for that the kind does not have.
        """
        known, default = to_flat_dict(config_class()), to_flat_dict(ReaderAnswersConfig())
        given = {**to_flat_dict(self.choice), **to_flat_dict(self.search)}
        if vain := [
            f"--{name} {value}" for name, value in given.items() if name not in known and value != default[name]
        ]:
            raise ConfigError(f"{', '.join(vain)}: the {reader} reader has no use for that; leave it out.")
        return overlaid(config_class(), self)


@dataclass(kw_only=True, frozen=True)
class ReaderLayoutConfig:
    """Layout of a question together with a passage; prefixes are of fusion readers, prompts of causal ones."""

    lengths: ReaderLengthsConfig = field(default_factory=ReaderLengthsConfig)
    segment: PassageSegmentConfig = field(default_factory=PassageSegmentConfig)
    prefixes: PrefixConfig = field(default_factory=PrefixConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)


@dataclass(frozen=True)
class ReaderSettings:
    """What a reader is built with.

    Attributes:
        shape: of its model.
        layout: of question and passage; of the kind's `layout` class.
        answers: how it answers; of the kind's `answers` class.
        encode: how many texts it encodes together, and in which form scores enter its attention.
    """

    shape: Any
    layout: Any
    answers: Any
    encode: FusionEncodeConfig = field(default_factory=FusionEncodeConfig)
