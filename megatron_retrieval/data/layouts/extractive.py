"""How a question and a passage become one token sequence, for readers of BERT's kind."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from megatron_retrieval.data.layouts.lengths import ReaderLengthsConfig
from megatron_retrieval.data.layouts.sequences import format_question_and_passage, format_question_and_text
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.tokenizers.vocabulary import SpecialIds
from megatron_retrieval.types.extractive import ExtractivePassages


@dataclass(kw_only=True, frozen=True)
class PassageSegmentConfig:
    """Which tokens are of the second segment."""

    passage_segment: bool = True
    """Title and text get the second segment embedding, as the second of two texts does in BERT's pretraining; off: all
    tokens get the first, as in DPR. Of extractive readers."""


@dataclass(kw_only=True, frozen=True)
class QuestionRoomConfig(ReaderLengthsConfig):
    """Lengths of a question and of the sequence that it shares with a passage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.question_seq_length > self.reader_seq_length - 8:
            raise ConfigError(
                f"--question-seq-length {self.question_seq_length} must leave 8 tokens of --reader-seq-length "
                f"{self.reader_seq_length}."
            )


@dataclass(kw_only=True, frozen=True)
class ExtractiveFormatConfig(PassageSegmentConfig, QuestionRoomConfig):
    """Layout of a question together with a passage: [CLS] question [SEP] title [SEP] text [SEP]."""

    passage_title: bool = True
    """Read the title before the text; off: the text alone, as readers of SQuAD do. Of extractive readers."""

    def lay_out(self, questions: Ragged, titles: Ragged, texts: Ragged, special: SpecialIds) -> ExtractivePassages:
        """The sequences of P pairs of question and passage."""
        questions = questions.take(np.arange(len(questions)), self.question_seq_length)
        if self.passage_title:
            passages = format_question_and_passage(questions, titles, texts, special, self.reader_seq_length)
        else:
            passages = format_question_and_text(questions, texts, special, self.reader_seq_length)
        return passages if self.passage_segment else dataclasses.replace(passages, passage_starts=None)

    def room_for_text(self, question_length: int, title_length: int, special: SpecialIds) -> int:
        """Tokens of a text that are kept."""
        title = special.num_between + title_length if self.passage_title else 0
        frame = len(special.frame) + special.num_between
        return self.reader_seq_length - frame - min(question_length, self.question_seq_length) - title
