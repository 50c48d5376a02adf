"""Batches of questions and passages for contrastive training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from megatron_retrieval.types.tokens import TokenBatch, to_device


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

    def to(self, device: torch.device) -> SameGroup:
        return SameGroup(*(to_device(column, device) for column in (self.questions, self.passages, self.positives)))


class Numbers(NamedTuple):
    """What a dataset calls the texts of a batch; -1 where they are fillers.

    Attributes:
        questions: [n] int64.
        passages: [n * (N + H)] int64.
    """

    questions: Tensor
    passages: Tensor


@dataclass(frozen=True)
class ContrastiveBatch:
    """One rank's share of a global batch of questions with their positive and hard negative passages.

    All ranks hold the same number n of questions, so the batch of W ranks has W * n question slots and
    W * n * (N + H) passage slots, in the order of the global batch whatever W is. Slots beyond the end of an uneven
    last batch are fillers.

    Attributes:
        questions: n rows.
        passages: n * (N + H) rows; from row j * (N + H) on stand the N positives of question j, then its H hard
            negatives. Where a question has fewer, the last ones are fillers; the first positive never is.
        question_is_real: [n] bool, False for fillers; they do not count in the loss.
        excluded: [n, W * n * (N + H)] bool, passages of the global batch that are no candidates for the question:
            fillers and false negatives (a positive of its own again, or a passage that contains its answer); a tensor,
            or what gives the same rows of it. A question's own positives are candidates.
        num_questions: real questions in the global batch (the denominator of the loss).
        num_false_negatives: pairs of this rank's share excluded as false negatives.
        num_positives: N.
        teacher: [n, N + H] float32, a teacher's scores of the question's own passages, NaN where there is none; None
            where the data has none.
        numbers: of this rank's questions and passages, on the CPU; None where the dataset has none.
    """

    questions: TokenBatch
    passages: TokenBatch
    question_is_real: Tensor
    excluded: Tensor | SameGroup
    num_questions: int
    num_false_negatives: int = 0
    num_positives: int = 1
    teacher: Tensor | None = None
    numbers: Numbers | None = None

    def to(self, device: torch.device) -> ContrastiveBatch:
        """With what the loss reads on the device; texts stay on the CPU, from where they are encoded part by part."""
        excluded = self.excluded
        return replace(
            self,
            question_is_real=to_device(self.question_is_real, device),
            excluded=excluded.to(device) if isinstance(excluded, SameGroup) else to_device(excluded, device),
            teacher=None if self.teacher is None else to_device(self.teacher, device),
        )

    def own_columns(self, dp_rank: int) -> Tensor:
        """[n, N + H] int64, the columns of each question's own passages among those of the global batch."""
        num_passages, num_questions = len(self.passages), len(self.questions)
        first, device = dp_rank * num_passages, self.question_is_real.device
        return torch.arange(first, first + num_passages, device=device).view(num_questions, -1)

    def positive_columns(self, dp_rank: int) -> Tensor:
        """[n, N] int64, the columns of each question's positives among the passages of the global batch."""
        return self.own_columns(dp_rank)[:, : self.num_positives]
