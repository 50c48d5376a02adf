"""Readers made of a RETRO, which reads passages as the neighbours of a question (Borgeaud et al. 2022, arXiv
2112.04426, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from megatron_retrieval.checkpoint.kinds.reader import ReaderModelKind
from megatron_retrieval.checkpoint.kinds.retro import RETRO_READER
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.layouts.retro import RetroFormatConfig, RetroLayout
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.causal_reader import CausalReader
from megatron_retrieval.models.generation import GenerationConfig
from megatron_retrieval.models.retro_reader import RetroReader
from megatron_retrieval.readers.causal import ContinuationFinetuneConfig, OpenCausalReader
from megatron_retrieval.readers.kind import ReaderKind
from megatron_retrieval.training.steps.causal_readings import CausalReadings


class OpenRetroReader(OpenCausalReader):
    """See OpenReader; all but what is read, and how, is as of a causal reader."""

    checkpoints: ClassVar[ReaderModelKind[Any, Any, Any]] = RETRO_READER
    reader_class: ClassVar[type[CausalReader]] = RetroReader

    def open_layout(self) -> RetroLayout:
        """See OpenCausalReader; an answer is read in one chunk, as neighbours of the next would be another search's."""
        length, longest_answer = self.settings.shape.retro_chunk_length, self.settings.answers.max_answer_length
        if longest_answer > length:
            raise ConfigError(
                f"--max-answer-length {longest_answer}: a RETRO with chunks of {length} tokens writes answers of "
                f"{length} at most, the end token included; lower it."
            )
        return RetroLayout(self.settings.layout, self.vocabulary, length)


@dataclass(kw_only=True, frozen=True)
class RetroFinetuneConfig(ContinuationFinetuneConfig):
    """Fine-tune a RETRO to answer questions whose passages it reads as neighbours; all of its weights are trained."""

    pretrained_checkpoint: str | None = field(default=None, metadata=INPUT)
    """Checkpoint whose weights, shape, vocabulary and, if it is such a reader, layout training starts from: of a RETRO
    or of a reader made of one."""
    layout: RetroFormatConfig = field(default_factory=RetroFormatConfig)

    @property
    def kind(self) -> ReaderKind:
        """See ReaderFinetuneConfig."""
        return RETRO


RETRO = ReaderKind(
    name="retro",
    about="continues a question with the answer, and reads passages as its neighbours (RETRO)",
    passes=CausalReadings.passes,
    needs_passages=False,
    layout=RetroFormatConfig,
    answers=GenerationConfig,
    finetune=RetroFinetuneConfig,
    open=OpenRetroReader,
)
