"""The side of readers that point to the answer in training with a retriever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.examples.retrieved_extractive import AnswerPassages, RetrievedAnswers
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.span_reader import SpanReader
from megatron_retrieval.objectives.end_to_end import log_priors, sum_over_passages
from megatron_retrieval.objectives.extractive import answer_log_likelihoods, span_log_sums
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.readings import Pass
from megatron_retrieval.types.extractive import SpanLogits
from megatron_retrieval.types.search import FILLER_ROW
from megatron_retrieval.types.tokens import by_length, to_device


def _answers_and_selection(logits: SpanLogits, is_text: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
    """[P] and [P]: log p(a | q, z), and the reader's score of the passage. Unlike in `answer_log_likelihoods`, passages
    may have no answer: -inf there."""
    correct, every = span_log_sums(logits, is_text, spans)
    is_answer = correct > -torch.inf
    return (correct - every.where(is_answer, 0)).where(is_answer, -torch.inf), logits.selection


@dataclass(frozen=True)
class ExtractiveReading:
    """See PointingReading; passages without an answer have no chance, the null passage among them, and are not read.

    Attributes:
        found: the others, on the CPU.
        read_all: lays out all of them.
        is_real: [n, K] bool on the model's device.
        batch_size: passages read at once.
    """

    model: ExtractiveReader | SpanReader
    found: AnswerPassages
    read_all: Callable[[], AnswerPassages]
    is_real: Tensor
    batch_size: int

    @property
    def module(self) -> nn.Module:
        """See Reading."""
        return self.model

    def each(self) -> Tensor:
        """See Reading."""
        return self._of_passages(self.found, lambda *read: (answer_log_likelihoods(*read),), 1)[0]

    def span_sums(self) -> tuple[Tensor, Tensor]:
        """What the answer and what all spans weigh in every passage, answer or not: see `span_log_sums`; both [n, K],
        -inf in fillers."""
        correct, total = self._of_passages(self.read_all(), span_log_sums, 2)
        return correct, total

    def together(self) -> Tensor:
        """See PointingReading."""
        answers, selection = self._of_passages(self.read_all(), _answers_and_selection, 2)
        is_read = selection > -torch.inf
        whole = sum_over_passages(log_priors(selection, is_read) + answers, is_read)
        return whole[whole > -torch.inf]

    def _of_passages(
        self, passages: AnswerPassages, compute: Callable[..., tuple[Tensor, ...]], num_values: int
    ) -> Tensor:
        """[num_values, n, K] of what `compute` makes of passages' (logits, is_text, spans); -inf elsewhere."""
        device, lengths = self.is_real.device, passages.passages.tokens.lengths
        values = torch.full((self.is_real.numel(), num_values), -torch.inf, device=device)
        for rows in by_length(lengths, self.batch_size) if len(lengths) else ():
            read = passages.rows(rows).to(device)
            own = compute(self.model(read.passages), read.passages.is_text, read.spans)
            values = values.index_copy(0, read.slots, torch.stack(own, 1))
        return values.T.reshape(num_values, *self.is_real.shape)

    def holds(self) -> Tensor:
        """See PointingReading."""
        held = torch.zeros(self.is_real.numel(), dtype=torch.bool)
        held[self.found.slots] = True
        return to_device(held.view(self.is_real.shape), self.is_real.device)


class ExtractiveReadings:
    """The side of a reader that points, which learns all answers of a question; see ReaderSide.

    Args:
        batch_size: passages read at once.
    """

    passes: ClassVar[frozenset[Pass]] = frozenset({"each", "holds", "span_sums"})

    def __init__(
        self,
        model: ExtractiveReader | SpanReader,
        answers: RetrievedAnswers,
        topology: ProcessTopology,
        *,
        batch_size: int,
    ) -> None:
        self._model, self._answers, self._device, self._batch_size = model, answers, topology.device, batch_size

    def reading(self, batch: AskedBatch, rows: Tensor) -> ExtractiveReading:
        """See ReaderSide."""
        find = partial(self._answers.find, batch.reader_questions, batch.answers, rows.numpy())
        is_real = to_device(rows != FILLER_ROW, self._device)
        return ExtractiveReading(self._model, find(), partial(find, everything=True), is_real, self._batch_size)

    def holds(self, batch: AskedBatch, rows: Tensor) -> Tensor:
        """[n, C] bool on the model's device, which of many candidates hold an answer."""
        held = self._answers.holds(batch.reader_questions, batch.answers, rows.numpy())
        return to_device(torch.from_numpy(held), self._device)

    def without_passages(self, batch: AskedBatch) -> Mapping[str, Tensor]:
        """See ReaderSide."""
        return {}


class SelectingReadings(ExtractiveReadings):
    """See ExtractiveReadings; the reader scores passages as well."""

    passes: ClassVar[frozenset[Pass]] = ExtractiveReadings.passes | {"together"}
