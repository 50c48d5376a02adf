"""What an extractive reader can learn from: questions, their passages sorted into those with an answer and others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.examples.answer_spans import AnswerFinder
from megatron_retrieval.data.examples.passage_tokens import PassageTokens, RaggedBuilder
from megatron_retrieval.data.files.passage_questions import QuestionCensus, ReaderQuestion
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.stores.ragged import token_dtype, tokenize
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils.logging import get_logger

log = get_logger("data")


@dataclass(kw_only=True, frozen=True)
class ExtractiveDataConfig(Checked):
    """What is drawn from the passages of a question."""

    num_train_passages: PositiveInt = 24
    """Passages of a question in a batch: one that holds an answer, the others none."""
    passage_draw: Literal["sample", "first"] = "sample"
    """sample: drawn anew in every epoch; first: always those that stand first in the file."""


@dataclass
class Examples:
    """The questions that can be learned from, as they are collected.

    Attributes:
        positives: of every question, numbers of passages that hold an answer.
        negatives: of every question, numbers of passages that hold none.
        spans: of every positive of every question in turn, first and last token of each occurrence in its text.
    """

    questions: RaggedBuilder
    positives: RaggedBuilder = field(default_factory=lambda: RaggedBuilder(np.int64))
    negatives: RaggedBuilder = field(default_factory=lambda: RaggedBuilder(np.int64))
    spans: RaggedBuilder = field(default_factory=lambda: RaggedBuilder(np.int32))


class ExampleCollector:
    """Sorts the passages of questions into those that hold an answer and those that do not.

    Args:
        max_answer_length: in tokens; longer answers are not learned.
    """

    def __init__(
        self,
        config: ExtractiveDataConfig,
        layout: ExtractiveFormatConfig,
        tokenizer: Vocabulary,
        max_answer_length: int,
    ) -> None:
        self._config, self._layout, self._tokenizer = config, layout, tokenizer
        self._max_answer_length = max_answer_length
        dtype = token_dtype(tokenizer.vocab_size)
        self._finder = AnswerFinder(tokenizer, np.dtype(dtype))
        self.passages = PassageTokens(tokenizer.encode, dtype)
        self.examples = Examples(RaggedBuilder(dtype))
        self.census = QuestionCensus()
        self.num_without_positive = self.num_with_few_passages = 0

    def add(self, questions: Sequence[ReaderQuestion]) -> None:
        """Take what can be learned from out of a block of questions."""
        numbers = iter(self.passages.add([passage for question in questions for passage in question.passages]))
        answers = iter(tokenize(self._tokenizer, [answer for question in questions for answer in question.answers]))
        texts = self._tokenizer.encode([question.text for question in questions])
        for question, ids in zip(questions, texts, strict=True):
            own_answers = [next(answers).tolist() for _ in question.answers]
            self._add_one(ids, own_answers, [next(numbers) for _ in question.passages])

    def _add_one(self, question: list[int], answers: list[list[int]], numbers: list[int]) -> None:
        longest = self._max_answer_length
        self.census.num_long_answers += sum(len(answer) > longest for answer in answers)
        forms = [(len(answer), self._finder.needles(answer)) for answer in answers if answer]
        all_needles = [needle for _, needles in forms for needle in needles]
        short = [needle for length, needles in forms if length <= longest for needle in needles]
        positives: list[tuple[int, list[tuple[int, int]]]] = []
        negatives = []
        for number in dict.fromkeys(numbers):
            text = self.passages.texts[number]
            title_length = self.passages.titles.length(number)
            room = self._layout.room_for_text(len(question), title_length, self._tokenizer.special)
            spans = [span for span in self._finder.spans(text, short) if span[1] < room]
            if spans:
                positives.append((number, spans))
            elif not self._finder.spans(text, all_needles):
                negatives.append(number)
        if not positives:
            self.num_without_positive += bool(answers and numbers)
            return
        self.num_with_few_passages += len(negatives) + 1 < self._config.num_train_passages
        self.examples.questions.append(question)
        self.examples.positives.append(number for number, _ in positives)
        self.examples.negatives.append(negatives)
        for _, spans in positives:
            self.examples.spans.append(place for span in spans for place in span)

    def log(self) -> None:
        """Log how many questions are used, and why others are not."""
        log.info(
            "reader: %s questions to learn from, %s passages",
            f"{len(self.examples.questions):,}", f"{len(self.passages):,}",
        )  # fmt: skip
        if self.num_without_positive:
            log.info("left out, no passage holds an answer that fits: %s", f"{self.num_without_positive:,} questions")
        if self.num_with_few_passages:
            log.info(
                "questions with fewer than %d passages to choose from: %s",
                self._config.num_train_passages, f"{self.num_with_few_passages:,}",
            )  # fmt: skip
