"""REALM: a retriever and a masked language model learn from plain text which passages help to fill masks (Guu et al.
2020, arXiv 2002.08909)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.registry import describe
from megatron_retrieval.config.choices import OneOf
from megatron_retrieval.data.examples.masked_texts import MaskedTexts, MaskedTextsConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.kind import ReaderKind
from megatron_retrieval.readers.masked import MASKED
from megatron_retrieval.recipes.end_to_end.config import READER
from megatron_retrieval.recipes.end_to_end.mss import MssDataConfig, MssPretrainingConfig, MssRun
from megatron_retrieval.training.steps.end_to_end_objectives import OBJECTIVES
from megatron_retrieval.training.steps.end_to_end_step import EndToEndStepConfig
from megatron_retrieval.training.steps.memoised_readings import ReadingMemory
from megatron_retrieval.training.steps.passage_search import TopkConfig
from megatron_retrieval.training.tasks.watching import WritePage
from megatron_retrieval.training.trainer import Trainer


@dataclass(kw_only=True, frozen=True)
class RealmDataConfig(MssDataConfig):
    """Masked texts to learn from, and what is looked at meanwhile."""

    sentences: MaskedTextsConfig


@dataclass(kw_only=True, frozen=True)
class RealmStepConfig(EndToEndStepConfig):
    """The objective and how its step is computed."""

    objective: Annotated[str, OneOf(OBJECTIVES)] = "realm"
    """What reader and retriever learn from."""


@dataclass(kw_only=True, frozen=True)
class RealmCandidatesConfig(TopkConfig):
    """How many passages are found and read for a text."""

    null_passage: bool = True
    """The last of the --num-passages is the null passage, which has neither title nor text: the retriever learns when
    no passage helps, and the reader reads the text alone."""


@dataclass(kw_only=True, frozen=True)
class RealmPretrainingConfig(MssPretrainingConfig):
    """Pretrain a retriever and a masked language model: fill the masks of a text with the help of passages that do not
    hold it (REALM). --reader is a masked language model, or a dual encoder, to whose encoder a new head is added."""

    data: RealmDataConfig
    step: RealmStepConfig = field(default_factory=RealmStepConfig)
    search: RealmCandidatesConfig = field(default_factory=RealmCandidatesConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reader_kind is not None:
            raise ConfigError(f"--reader-kind {self.reader_kind}: the reader is a masked language model; leave it out.")

    @cached_property
    def start_reader(self) -> tuple[ReaderKind, AnyDescription]:
        """See EndToEndConfig."""
        folder = self.training.save.resume_folder
        return MASKED, describe(folder / READER if folder else self.reader, MASKED.checkpoints.starts_from)


class RealmRun(MssRun):
    """Learns from masked texts."""

    sentences_class = MaskedTexts

    @property
    def num_watched(self) -> int:
        """See MssRun; what is hidden at random has no type and is not looked at."""
        sentences = self.config.data.sentences
        assert isinstance(sentences, MaskedTextsConfig)
        return super().num_watched if sentences.masking == "salient" else 0


def build(
    config: RealmPretrainingConfig,
    topology: ProcessTopology,
    write_page: WritePage | None = None,
    memory: ReadingMemory | None = None,
) -> Trainer:
    """Open the spans, build the model, and make the trainer; see `MssRun`."""
    return RealmRun(config, topology, write_page).trainer(memory)
