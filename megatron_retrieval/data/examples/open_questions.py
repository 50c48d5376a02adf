"""Training data of end-to-end training: questions with answers, and no passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.data.examples.loader import Share
from megatron_retrieval.data.files.passage_questions import not_blank
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig, read_questions
from megatron_retrieval.data.layouts.sequences import TextFormatConfig, format_questions
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.questions import Question
from megatron_retrieval.types.tokens import TokenBatch
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.seeds import generator

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
    """One rank's share of a global batch of questions.

    Attributes:
        questions: n of them, at least one.
        targets: the answer to learn of each.
        queries: n rows, as the retriever reads questions.
        excluded_rows: [n, E] int64 rows of the evidence that are no candidates for the question; -1 stands for none.
        num_questions: in the global batch (the denominator of the loss).
        is_filler: the rank has no share of an uneven last batch, and the questions count nothing.
    """

    questions: tuple[Question, ...]
    targets: tuple[str, ...]
    queries: TokenBatch
    excluded_rows: Tensor
    num_questions: int
    is_filler: bool = False

    def __len__(self) -> int:
        return len(self.questions)


class AskedQuestions:
    """Questions with at least one answer.

    Which of a question's answers is learned is named by (seed, epoch, position in the epoch).

    Args:
        config: files, and what is excluded.
        text_format: layout of questions.
        tokenizer: of the retriever.
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
        evidence: EvidenceStore,
        *,
        seed: int,
    ) -> None:
        self._format, self._special, self._seed = text_format, tokenizer.special, seed
        self.questions = _read(config)
        self._tokens = tokenize(tokenizer, [question.text for question in self.questions])
        self._excluded = [
            evidence.rows_of(question.gold_passage_ids) if config.exclude_gold_passages else np.empty(0, np.int64)
            for question in self.questions
        ]

    def __len__(self) -> int:
        return len(self.questions)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> AskedBatch:
        """This rank's share of a global batch; see `DprDataset.batch`."""
        share = Share.of(len(indices), dp_rank, dp_size)
        own = list(indices[share.own]) or list(indices[:1])
        questions = tuple(self.questions[index] for index in own)
        targets = tuple(
            self._target(question, epoch, first_position + share.first + place)
            for place, question in enumerate(questions)
        )
        tokens = self._tokens.take(np.array(own, np.int64))
        excluded = np.full((len(own), max(len(self._excluded[index]) for index in own)), -1, np.int64)
        for place, index in enumerate(own):
            excluded[place, : len(self._excluded[index])] = self._excluded[index]
        return AskedBatch(
            questions,
            targets,
            format_questions(tokens, self._special, self._format.query_seq_length),
            torch.from_numpy(excluded),
            len(indices),
            is_filler=share.num_real == 0,
        )

    def _target(self, question: Question, epoch: int, position: int) -> str:
        if len(question.answers) == 1:
            return question.answers[0]
        random = generator(self._seed, "answers", epoch, position)
        return question.answers[int(random.integers(len(question.answers)))]


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
