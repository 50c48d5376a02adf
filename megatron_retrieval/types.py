"""Frozen values that travel between the floors, and the legend of their shapes.

Shape letters, used in names, comments and docstrings everywhere:

    B  batch (questions)        P  passages of a batch      K, k  passages retrieved per question
    T  tokens                   L  answer tokens            D     embedding dimension
    N  rows of the evidence     V  vocabulary               W     ranks
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

#: widths of token batches are multiples of this: the CPU's matrix library keeps kernels, and memory, for every shape
#: that it meets, and tensor cores prefer such shapes
WIDTH_STEP = 8


@dataclass(frozen=True)
class Passage:
    """One passage of the evidence; `id` is the external id of the file it came from."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """One question with its acceptable answers (strings, or regular expressions where the file says so)."""

    id: str
    text: str
    answers: tuple[str, ...]
    #: external ids of the passages known to hold the answer; empty where gold is unknown
    gold_passage_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenBatch:
    """Token sequences padded on the right.

    Attributes:
        ids: [B, T] int64, padding value irrelevant.
        lengths: [B] int64, number of real tokens in each row (at least 1).
    """

    ids: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return self.ids.size(0)

    def rows(self, index: Tensor) -> TokenBatch:
        """The rows `index` [n], cut to the longest of them, in steps of `WIDTH_STEP` tokens."""
        lengths = self.lengths[index]
        longest = int(lengths.max()) if len(lengths) else 0
        return TokenBatch(self.ids[index, : -(-longest // WIDTH_STEP) * WIDTH_STEP], lengths)

    def to(self, device: torch.device) -> TokenBatch:
        return TokenBatch(self.ids.to(device, non_blocking=True), self.lengths.to(device, non_blocking=True))


def rows_of_groups(groups: Tensor, size: int) -> Tensor:
    """[n] numbers of groups of `size` rows each -> [n * size] numbers of their rows."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


def real_lengths(texts: TokenBatch, is_real: Tensor) -> Tensor:
    """[B, K] tokens of each of the B * K texts, 0 where `is_real` [B, K] says that it is a filler."""
    return texts.lengths.view_as(is_real).masked_fill(~is_real, 0)


def cut_labels(labels: Tensor) -> Tensor:
    """[n, L] labels, negative behind each row's own ones, cut to the longest row."""
    return labels[:, : int((labels >= 0).sum(1).max()) if len(labels) else 0]


@dataclass(frozen=True)
class SearchResult:
    """The k best rows for each query.

    Attributes:
        scores: [B, k] float32, descending.
        rows: [B, k] int64 rows of the evidence; equal scores are ordered by row.
    """

    scores: Tensor
    rows: Tensor


@dataclass(frozen=True)
class LossOutput:
    """What an objective returns: the scalar to differentiate and plain numbers to log."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class SameGroup:
    """The mask [n, P] of passages that are of the question's own group (document), made row by row as it is needed:
    of a batch of thousands it would take more memory than the batch.

    Attributes:
        questions: [n] int64, the group of each question; `NO_GROUP` where none is excluded.
        passages: [P] int64, the group of each passage; `FILLER` where it is no candidate for anyone.
        positives: [n] int64, the column of each question's positive, which is never excluded.
    """

    NO_GROUP: ClassVar = -2
    FILLER: ClassVar = -1

    questions: Tensor
    passages: Tensor
    positives: Tensor

    def __getitem__(self, rows: slice) -> Tensor:
        """[rows, P] bool, where a passage is no candidate."""
        excluded = (self.questions[rows, None] == self.passages) | (self.passages == self.FILLER)
        return excluded.scatter_(1, self.positives[rows, None], False)

    def to(self, device: torch.device, non_blocking: bool = False) -> SameGroup:
        columns = (self.questions, self.passages, self.positives)
        return SameGroup(*(column.to(device, non_blocking=non_blocking) for column in columns))


@dataclass(frozen=True)
class ContrastiveBatch:
    """One rank's share of a global batch of questions with their positive and hard negative passages.

    All ranks hold the same number n of questions, so the batch of W ranks has W * n question slots and
    W * n * (1 + H) passage slots, in the order of the global batch whatever W is. Slots beyond the end of an uneven
    last batch are fillers.

    Attributes:
        questions: n rows.
        passages: n * (1 + H) rows; row j * (1 + H) is the positive of question j, its H hard negatives follow.
        question_is_real: [n] bool, False for fillers; they do not count in the loss.
        excluded: [n, W * n * (1 + H)] bool, passages of the global batch that are no candidates for the question:
            fillers and false negatives (its own positive again, or a passage that contains its answer); a tensor, or
            what gives the same rows of it.
        num_questions: real questions in the global batch (the denominator of the loss).
        num_false_negatives: pairs of this rank's share excluded as false negatives.
    """

    questions: TokenBatch
    passages: TokenBatch
    question_is_real: Tensor
    excluded: Tensor | SameGroup
    num_questions: int
    num_false_negatives: int = 0

    def to(self, device: torch.device) -> ContrastiveBatch:
        return ContrastiveBatch(
            self.questions.to(device),
            self.passages.to(device),
            self.question_is_real.to(device, non_blocking=True),
            self.excluded.to(device, non_blocking=True),
            self.num_questions,
            self.num_false_negatives,
        )


@dataclass(frozen=True)
class MaskedBatch:
    """One rank's share of a global batch of masked sequences; all ranks hold the same number of rows.

    Attributes:
        tokens: n sequences, masked.
        labels: [n, T] int64, the original id where a token is to be predicted, -1 elsewhere and in fillers.
    """

    tokens: TokenBatch
    labels: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor) -> MaskedBatch:
        """The rows `index` [n], cut like their tokens."""
        tokens = self.tokens.rows(index)
        return MaskedBatch(tokens, self.labels[index, : tokens.ids.size(1)])

    def to(self, device: torch.device) -> MaskedBatch:
        return MaskedBatch(self.tokens.to(device), self.labels.to(device, non_blocking=True))


@dataclass(frozen=True)
class CorruptedBatch:
    """One rank's share of a global batch of texts with gaps; all ranks hold the same number of rows.

    Attributes:
        tokens: n texts, a sentinel in the place of each gap, with their end tokens.
        labels: [n, L] int64, each text's sentinels and behind each what was in its place, with an end token; -1 behind
            that and in fillers.
    """

    tokens: TokenBatch
    labels: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor) -> CorruptedBatch:
        """The rows `index` [n], labels cut to the longest."""
        return CorruptedBatch(self.tokens.rows(index), cut_labels(self.labels[index]))

    def to(self, device: torch.device) -> CorruptedBatch:
        return CorruptedBatch(self.tokens.to(device), self.labels.to(device, non_blocking=True))


@dataclass(frozen=True)
class ReadPassages:
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
        return (columns >= self.text_starts[:, None]) & (columns < self.tokens.lengths[:, None] - 1)

    @property
    def segments(self) -> Tensor | None:
        """[P, T] int64: 0 in the question, 1 in title and text; None where all would be 0."""
        if self.passage_starts is None:
            return None
        columns = torch.arange(self.tokens.ids.size(1), device=self.tokens.ids.device)
        return (columns >= self.passage_starts[:, None]).long()

    def rows(self, index: Tensor) -> ReadPassages:
        """The rows `index` [n], cut like their tokens."""
        starts = None if self.passage_starts is None else self.passage_starts[index]
        return ReadPassages(self.tokens.rows(index), starts, self.text_starts[index])

    def to(self, device: torch.device) -> ReadPassages:
        starts = None if self.passage_starts is None else self.passage_starts.to(device, non_blocking=True)
        return ReadPassages(self.tokens.to(device), starts, self.text_starts.to(device, non_blocking=True))


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
class ReadingBatch:
    """One rank's share of a global batch of questions, each with K passages of which the first holds an answer.

    Attributes:
        passages: n * K rows; those of question j begin at row j * K.
        is_real: [n, K] bool, False for fillers, be it a passage or a question with all of its passages.
        spans: [n, A, 2] int64, first and last column of each occurrence of an answer in the question's first passage;
            -1 where there are fewer than A.
        num_questions: real questions in the global batch (the denominator of the loss).
    """

    passages: ReadPassages
    is_real: Tensor
    spans: Tensor
    num_questions: int

    def questions(self, index: Tensor) -> ReadingBatch:
        """The questions `index` [n] with their passages."""
        passages = self.passages.rows(rows_of_groups(index, self.is_real.size(1)))
        return ReadingBatch(passages, self.is_real[index], self.spans[index], self.num_questions)

    def to(self, device: torch.device) -> ReadingBatch:
        is_real, spans = (column.to(device, non_blocking=True) for column in (self.is_real, self.spans))
        return ReadingBatch(self.passages.to(device), is_real, spans, self.num_questions)


@dataclass(frozen=True)
class FusionBatch:
    """One rank's share of a global batch of questions, each with K texts (the question together with a passage, or the
    question alone) and the answer to write; all ranks hold the same number of questions.

    Attributes:
        texts: n * K rows; those of question j begin at row j * K.
        is_real: [n, K] bool, False for fillers, be it a text or a question with all of its texts.
        labels: [n, L] int64, the answer with its end token, -1 behind it and in fillers.
    """

    texts: TokenBatch
    is_real: Tensor
    labels: Tensor

    def questions(self, index: Tensor) -> FusionBatch:
        """The questions `index` [n] with their texts, labels cut to the longest."""
        texts = self.texts.rows(rows_of_groups(index, self.is_real.size(1)))
        return FusionBatch(texts, self.is_real[index], cut_labels(self.labels[index]))

    def to(self, device: torch.device) -> FusionBatch:
        is_real, labels = (column.to(device, non_blocking=True) for column in (self.is_real, self.labels))
        return FusionBatch(self.texts.to(device), is_real, labels)
