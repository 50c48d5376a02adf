"""How a question and a passage become one text for readers that write their answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_retrieval.data.layouts.lengths import ReaderLengthsConfig
from megatron_retrieval.data.layouts.sequences import join_segments
from megatron_retrieval.data.stores.ragged import Ragged, token_dtype
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.tokens import TokenBatch

#: tokens of a sequence that prefixes and question must leave to title and text
MIN_PASSAGE_TOKENS = 8


@dataclass(kw_only=True, frozen=True)
class PrefixConfig:
    """Words that tell the parts of a text apart."""

    question_prefix: str = "question:"
    """Stands before the question."""
    title_prefix: str = "title:"
    """Stands before the title of a passage."""
    passage_prefix: str = "context:"
    """Stands before the text of a passage."""


@dataclass(kw_only=True, frozen=True)
class FusionFormatConfig(PrefixConfig, ReaderLengthsConfig):
    """Layout of a question together with a passage: question: ... title: ... context: ... (FiD)."""


class FusionLayout:
    """The layout for one vocabulary.

    Raises:
        ConfigError: prefixes and question leave no room for passages.
    """

    def __init__(self, config: FusionFormatConfig, tokenizer: Vocabulary) -> None:
        special = tokenizer.special
        self.config, self.end_id, self.pad_id = config, special.end, special.pad
        prefixes = tokenizer.encode([config.question_prefix, config.title_prefix, config.passage_prefix])
        if special.begin is not None:
            prefixes[0].insert(0, special.begin)
        dtype = token_dtype(tokenizer.vocab_size)
        self._prefixes = [np.array(prefix, dtype) for prefix in prefixes]
        needed = sum(map(len, prefixes)) + config.question_seq_length + 1 + MIN_PASSAGE_TOKENS
        if needed > config.reader_seq_length:
            raise ConfigError(
                f"--reader-seq-length {config.reader_seq_length} leaves no room for passages: prefixes and a question "
                f"of --question-seq-length {config.question_seq_length} need at least {needed}."
            )

    def with_passages(self, questions: Ragged, titles: Ragged, texts: Ragged) -> TokenBatch:
        """The sequences of P pairs of question and passage."""
        asked, title, context = self._prefixes
        num_rows = len(texts)
        segments = [
            _repeated(asked, num_rows), self._cut(questions),
            _repeated(title, num_rows), titles,
            _repeated(context, num_rows), texts,
        ]  # fmt: skip
        return self._join(segments)

    def alone(self, questions: Ragged) -> TokenBatch:
        """The sequences of questions that no passage goes with."""
        return self._join([_repeated(self._prefixes[0], len(questions)), self._cut(questions)])

    def _cut(self, questions: Ragged) -> Ragged:
        return questions.take(np.arange(len(questions)), self.config.question_seq_length)

    def _join(self, segments: list[Ragged]) -> TokenBatch:
        return join_segments(segments, self.config.reader_seq_length, end_id=self.end_id, pad_id=self.pad_id)


def _repeated(sequence: np.ndarray, num_rows: int) -> Ragged:
    return Ragged(np.tile(sequence, num_rows), np.arange(num_rows + 1) * len(sequence))
