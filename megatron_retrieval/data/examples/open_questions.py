"""Training data of end-to-end training: questions with answers, and no passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.data.examples.answer_draw import draw_answers
from megatron_retrieval.data.examples.loader import Share
from megatron_retrieval.data.files.passage_questions import not_blank
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig, read_questions
from megatron_retrieval.data.layouts.sequences import TextFormatConfig, format_questions
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Ragged, to_offsets, tokenize
from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.questions import Question
from megatron_retrieval.types.tokens import TokenBatch
from megatron_retrieval.utils.logging import get_logger

log = get_logger("data")


@dataclass(kw_only=True, frozen=True)
class AskedDataConfig:
    """Questions to learn from, and which passages may not be found for them."""

    train_data: tuple[str, ...]
    """Questions with answers: DPR .qa.csv, JSON lines, or DPR biencoder JSON, plain or gzip; passages in the files are
    not read."""
    asked: AskedQuestionsConfig
    """Which of them are asked, and how."""
    exclude_gold_passages: bool = False
    """Never retrieve the passages that the file names as a question's own, for questions that were made from them."""


@dataclass(frozen=True)
class AskedBatch:
    """One rank's share of a global batch of questions, in token ids: mask tokens and sentinels, which no text can hold,
    may stand among them.

    Attributes:
        retriever_queries: n rows, at least one, framed and cut as the retriever reads questions.
        reader_questions: n sequences in the reader's vocabulary, neither framed nor cut.
        targets: n sequences in the reader's vocabulary, the answer to learn of each question; neither framed nor cut.
        answers: n times all answers of a question, at least one, in the reader's vocabulary.
        excluded_rows: [n, E] int64 rows of the evidence that are no candidates for the question; -1 stands for none.
        num_questions: in the global batch (the denominator of the loss).
        is_filler: the rank has no share of an uneven last batch, and the questions count nothing.
    """

    retriever_queries: TokenBatch
    reader_questions: Ragged
    targets: Ragged
    answers: tuple[Ragged, ...]
    excluded_rows: Tensor
    num_questions: int
    is_filler: bool = False

    def __len__(self) -> int:
        return len(self.retriever_queries)

    def questions(self, index: Tensor) -> AskedBatch:
        """The questions `index` [m]."""
        rows = index.numpy()
        return AskedBatch(
            self.retriever_queries.rows(index),
            self.reader_questions.take(rows),
            self.targets.take(rows),
            tuple(self.answers[row] for row in rows),
            self.excluded_rows[index],
            self.num_questions,
            self.is_filler,
        )


class AskedQuestions:
    """Questions with at least one answer; a BatchSource.

    Args:
        config: files, and what is excluded.
        text_format: layout of questions for the retriever.
        tokenizer: of the retriever.
        reader_tokenizer: of the reader.
        evidence: where the passages are found.
        seed: of the run.

    Attributes:
        questions: in the order of the files.

    Raises:
        DataError: a file is malformed, or no question has an answer.
    """

    def __init__(
        self,
        config: AskedDataConfig,
        text_format: TextFormatConfig,
        tokenizer: Vocabulary,
        reader_tokenizer: Vocabulary,
        evidence: EvidenceStore,
        *,
        seed: int,
    ) -> None:
        self._format, self._special, self._seed = text_format, tokenizer.special, seed
        self.questions = _read(config)
        texts = [question.text for question in self.questions]
        self._queries, self._reader_questions = tokenize(tokenizer, texts), tokenize(reader_tokenizer, texts)
        self._answers = tokenize(reader_tokenizer, [a for question in self.questions for a in question.answers])
        self._first_answer = to_offsets(np.array([len(question.answers) for question in self.questions], np.int64))
        self._excluded = [
            evidence.rows_of(question.gold_passage_ids) if config.exclude_gold_passages else np.empty(0, np.int64)
            for question in self.questions
        ]

    def __len__(self) -> int:
        return len(self.questions)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> AskedBatch:
        """See BatchSource; of several answers one is drawn. There are no fillers beside examples: a rank has as many
        slots as examples, or one slot with the batch's first example as a filler."""
        share = Share.of(len(indices), dp_rank, dp_size)
        rows = np.array(list(indices[share.own]) or list(indices[:1]), np.int64)
        excluded = np.full((len(rows), max(len(self._excluded[row]) for row in rows)), -1, np.int64)
        for place, row in enumerate(rows):
            excluded[place, : len(self._excluded[row])] = self._excluded[row]
        first, end = self._first_answer[rows], self._first_answer[rows + 1]
        drawn = draw_answers(end - first, self._seed, epoch, first_position + share.first)
        return AskedBatch(
            format_questions(self._queries.take(rows), self._special, self._format.query_seq_length),
            self._reader_questions.take(rows),
            self._answers.take(first + drawn),
            tuple(self._answers.take(np.arange(*bounds)) for bounds in zip(first, end, strict=True)),
            torch.from_numpy(excluded),
            len(indices),
            is_filler=share.num_real == 0,
        )


def _read(config: AskedDataConfig) -> list[Question]:
    """The questions that have an answer; the others are counted."""
    questions: list[Question] = []
    num_without = 0
    for path in config.train_data:
        for question in read_questions(path, config.asked):
            answers = not_blank(question.answers)
            num_without += not answers
            if answers:
                questions.append(replace(question, answers=answers))
    if num_without:
        log.info("%s: %s questions without answers are left out", ", ".join(config.train_data), f"{num_without:,}")
    if not questions:
        raise DataError(config.train_data[0], "no question has an answer to learn")
    log.info("%s: %s questions with answers", ", ".join(config.train_data), f"{len(questions):,}")
    return questions
