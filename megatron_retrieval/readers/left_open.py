"""What the checkpoint of a reader leaves open that was not trained for what it is used for; flags say it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from megatron_retrieval.checkpoint.kinds.reader import AnyReaderDescription
from megatron_retrieval.config.checks import Checked, PositiveFloat, PositiveInt
from megatron_retrieval.config.parser import Config, overlaid, to_flat_dict
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.passage_scores import PassageScoreConfig

#: what the scores of passages are that a reader is given: a retriever's inner products, a reranker's, or others (BM25,
#: fused lists, those of a file)
ScoresOf = Literal["retriever", "reranker", "other"]
#: settings that are no part of the layout
_NO_LAYOUT = ("temperature",)


@dataclass(kw_only=True, frozen=True)
class LeftOpenConfig(Checked):
    """What a reader's checkpoint leaves open, such as that of a plain language model; where it states something, flags
    may repeat it, but not change it. Defaults are those of a reader's training."""

    question_seq_length: PositiveInt | None = None
    """Longest question, in tokens."""
    reader_seq_length: PositiveInt | None = None
    """Longest sequence of question and passage, in tokens; the passage is cut."""
    question_prefix: str | None = None
    """Words before the question, of fusion readers."""
    title_prefix: str | None = None
    """Words before the title of a passage, of fusion readers."""
    passage_prefix: str | None = None
    """Words before the text of a passage, of fusion readers."""
    prompt_instruction: str | None = None
    """What a causal reader is told to do."""
    prompt_context: str | None = None
    """Heading of the passages, of causal readers."""
    prompt_question: str | None = None
    """Heading of the question, of causal readers."""
    prompt_answer: str | None = None
    """Heading of the answer, of causal readers."""
    temperature: PositiveFloat | None = None
    """Divide the scores of passages by this before they become probabilities. Default: as in the reader's training with
    a retriever; 1 where there was none, and of the scores of --rerank."""

    def over(self, default: Config, saved: AnyReaderDescription) -> Config:
        """The layout that a reader reads by.

        Args:
            default: that of its kind.

        Raises:
            ConfigError: a flag contradicts the checkpoint, or is of other readers.
        """
        start = default if saved.layout is None else saved.layout
        known = to_flat_dict(start)
        for name, value in to_flat_dict(self).items():
            if value is None or name in _NO_LAYOUT:
                continue
            if name not in known:
                raise ConfigError(f"--{name}: the reader {saved.folder} has no use for it; leave it out.")
            if saved.layout is not None and known[name] != value:
                raise ConfigError(
                    f"--{name} {value}: the reader {saved.folder} was trained with {known[name]!r}; leave it out."
                )
        return overlaid(start, self)

    def scores(self, saved: AnyReaderDescription, scores_of: ScoresOf) -> PassageScoreConfig:
        """What the reader does with the scores of passages.

        Raises:
            ConfigError: --temperature is not what the reader was trained with, for scores of the same kind.
        """
        stated, found = saved.stated_scores, saved.passage_scores
        if self.temperature is None:
            return replace(found, passage_score_divisor=1.0) if scores_of == "reranker" else found
        is_other = stated is not None and not math.isclose(stated.passage_score_divisor, self.temperature)
        if is_other and scores_of == "retriever":
            raise ConfigError(
                f"--temperature {self.temperature:g}: the reader {saved.folder} was trained with scores divided by "
                f"{found.passage_score_divisor:g}; leave it out."
            )
        return replace(found, passage_score_divisor=self.temperature)
