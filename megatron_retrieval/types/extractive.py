"""Batches and outputs of extractive readers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.types.tokens import TokenBatch, rows_of_groups, to_device


@dataclass(frozen=True)
class ExtractivePassages:
    """Passages, each read together with a question: [CLS] question [SEP] title [SEP] text [SEP].

    Attributes:
        tokens: P sequences.
        passage_starts: [P] int64, the column where the title and the second segment begin; None where all tokens are of
            the first segment.
        text_starts: [P] int64, the column where the text begins; its last column is the one before the last token.
    """

    tokens: TokenBatch
    passage_starts: Tensor | None
    text_starts: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_text(self) -> Tensor:
        """[P, T] bool, the columns of the text."""
        columns = torch.arange(self.tokens.ids.size(1), device=self.tokens.ids.device)
        ends = to_device(self.tokens.lengths, columns.device)[:, None] - 1
        return (columns >= self.text_starts[:, None]) & (columns < ends)

    @property
    def segments(self) -> Tensor | None:
        """[P, T] int64: 0 in the question, 1 in title and text; None where all would be 0."""
        if self.passage_starts is None:
            return None
        columns = torch.arange(self.tokens.ids.size(1), device=self.tokens.ids.device)
        return (columns >= self.passage_starts[:, None]).long()

    def rows(self, index: Tensor) -> ExtractivePassages:
        """The rows `index` [n], cut like their tokens; all of it on the CPU."""
        starts = None if self.passage_starts is None else self.passage_starts[index]
        return ExtractivePassages(self.tokens.rows(index), starts, self.text_starts[index])

    def to(self, device: torch.device) -> ExtractivePassages:
        starts = None if self.passage_starts is None else to_device(self.passage_starts, device)
        return ExtractivePassages(self.tokens.to(device), starts, to_device(self.text_starts, device))


@dataclass(frozen=True)
class SpanLogits:
    """What an extractive reader says of P passages, all float32.

    Attributes:
        starts: [P, T], an answer begins at the token.
        ends: [P, T], an answer ends with the token.
        selection: [P], the passage holds the answer.
    """

    starts: Tensor
    ends: Tensor
    selection: Tensor


@dataclass(frozen=True)
class PairLogits:
    """What a reader of whole spans says of P passages.

    Attributes:
        spans: [P, T, W] float32, the answer begins at a token and has 1, 2, ... W tokens.
    """

    spans: Tensor


@dataclass(frozen=True)
class RankingBatch:
    """One rank's share of a global batch of questions, each with K passages of which the first is its positive.

    Attributes:
        passages: n * K rows; those of question j begin at row j * K.
        is_real: [n, K] bool, False for fillers, be it a passage or a question with all of its passages.
        num_questions: real questions in the global batch (the denominator of the loss).
        teacher: [n, K] float32, a teacher's scores, NaN where there is none; None where the data has none.
    """

    passages: ExtractivePassages
    is_real: Tensor
    num_questions: int
    teacher: Tensor | None = None

    def questions(self, index: Tensor) -> RankingBatch:
        """The questions `index` [n] with their passages; all of it on the CPU."""
        passages = self.passages.rows(rows_of_groups(index, self.is_real.size(1)))
        teacher = None if self.teacher is None else self.teacher[index]
        return RankingBatch(passages, self.is_real[index], self.num_questions, teacher)


@dataclass(frozen=True)
class ExtractiveBatch:
    """One rank's share of a global batch of questions, each with K passages of which the first holds an answer.

    Attributes:
        passages: n * K rows; those of question j begin at row j * K.
        is_real: [n, K] bool, False for fillers, be it a passage or a question with all of its passages.
        spans: [n, A, 2] int64, first and last column of each occurrence of an answer in the question's first passage;
            -1 where there are fewer than A.
        num_questions: real questions in the global batch (the denominator of the loss).
    """

    passages: ExtractivePassages
    is_real: Tensor
    spans: Tensor
    num_questions: int

    def questions(self, index: Tensor) -> ExtractiveBatch:
        """The questions `index` [n] with their passages; all of it on the CPU."""
        passages = self.passages.rows(rows_of_groups(index, self.is_real.size(1)))
        return ExtractiveBatch(passages, self.is_real[index], self.spans[index], self.num_questions)

    def to(self, device: torch.device) -> ExtractiveBatch:
        is_real, spans = (to_device(column, device) for column in (self.is_real, self.spans))
        return ExtractiveBatch(self.passages.to(device), is_real, spans, self.num_questions)
