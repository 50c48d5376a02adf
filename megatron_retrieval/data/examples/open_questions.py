"""Training data of end-to-end training: questions with answers, and no passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.examples.answer_draw import draw_answers
from megatron_retrieval.data.examples.batches import Share
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig, lay_out_questions
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.questions import QuestionStore
from megatron_retrieval.data.stores.ragged import Ragged, Rows
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.tokens import TokenBatch


@dataclass(kw_only=True, frozen=True)
class AskedDataConfig:
    """Questions to learn from, and which passages may not be found for them."""

    train_data: tuple[str, ...] = field(metadata=INPUT)
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
        groups: [n] int64, kinds of questions whose figures are kept apart (types of spans); None: all are of one kind.
        num_target_tokens: tokens of the targets of the global batch, scalar; None until a step has counted them.
    """

    retriever_queries: TokenBatch
    reader_questions: Ragged
    targets: Ragged
    answers: tuple[Ragged, ...]
    excluded_rows: Tensor
    num_questions: int
    is_filler: bool = False
    groups: Tensor | None = None
    num_target_tokens: Tensor | None = None

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
            None if self.groups is None else self.groups[index],
            self.num_target_tokens,
        )


class AskedQuestions:
    """Questions with at least one answer; a BatchSource.

    Args:
        store: the questions.
        text_format: layout of questions for the retriever.
        vocabulary: of the retriever.
        seed: of the run.
        excluded_from: evidence in which a question's gold passages are no candidates; None: they are.
    """

    def __init__(
        self,
        store: QuestionStore,
        text_format: TextFormatConfig,
        vocabulary: Vocabulary,
        *,
        seed: int,
        excluded_from: EvidenceStore | None = None,
    ) -> None:
        self.store, self._format, self._vocabulary = store, text_format, vocabulary
        self._seed, self._excluded_from = seed, excluded_from

    def __len__(self) -> int:
        return len(self.store)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> AskedBatch:
        """See BatchSource; of several answers one is drawn. There are no fillers beside examples: a rank has as many
        slots as examples, or one slot with the batch's first example as a filler."""
        share = Share.of(len(indices), dp_rank, dp_size)
        rows = np.array(list(indices[share.own]) or list(indices[:1]), np.int64)
        first, end = self.store.answers_of[rows], self.store.answers_of[rows + 1]
        drawn = draw_answers(end - first, self._seed, epoch, first_position + share.first)
        answers = self.store.answers
        return AskedBatch(
            self.queries(rows),
            self.store.reader_questions.take(rows),
            answers.take(first + drawn),
            tuple(answers.take(np.arange(*bounds)) for bounds in zip(first, end, strict=True)),
            self._excluded(rows),
            len(indices),
            is_filler=share.num_real == 0,
        )

    def queries(self, rows: Rows) -> TokenBatch:
        """The questions `rows` as the retriever reads them."""
        queries = self.store.retriever_queries.take(rows)
        return lay_out_questions(queries, self._vocabulary, self._format)

    def _excluded(self, rows: Rows) -> Tensor:
        """[n, E] rows of the evidence that are no candidates, -1 behind each question's own."""
        if self._excluded_from is None:
            return torch.empty(len(rows), 0, dtype=torch.int64)
        found = [self._excluded_from.rows_of(self.store.gold_ids(row)) for row in rows]
        excluded = np.full((len(rows), max(map(len, found))), -1, np.int64)
        for place, own in enumerate(found):
            excluded[place, : len(own)] = own
        return torch.from_numpy(excluded)
