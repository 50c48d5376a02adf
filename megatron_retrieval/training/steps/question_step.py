"""What steps have in common whose loss is the mean over questions, each read with its passages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.dropout import start_dropout
from megatron_retrieval.types.extractive import ExtractivePassages
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.metrics import Mean, Metric, Metrics, add_metrics
from megatron_retrieval.types.tokens import by_length


class QuestionBatch(Protocol):
    """One rank's share of a global batch of questions, see `ExtractiveBatch`."""

    @property
    def passages(self) -> ExtractivePassages: ...
    @property
    def is_real(self) -> Tensor: ...
    @property
    def num_questions(self) -> int: ...
    def questions(self, index: Tensor) -> Self:
        """The questions `index` [n] with their passages."""
        ...


Batch = TypeVar("Batch", bound=QuestionBatch)


class QuestionStep(ABC, Generic[Batch]):
    """Loss and accuracies are means over the questions of the global batch.

    Dropout depends on (seed, iteration, rank, micro-batch) only.

    Args:
        micro_batch_size: questions in one forward pass, each with all of its passages.
    """

    #: what is reported beside the loss
    reported: ClassVar[dict[str, type[Mean]]]

    def __init__(self, model: nn.Module, topology: ProcessTopology, seed: int, micro_batch_size: int) -> None:
        self.model, self.topology, self.seed, self._micro_batch_size = model, topology, seed, micro_batch_size

    @abstractmethod
    def loss(self, batch: Batch) -> LossOutput:
        """Of some questions, none a filler, on the CPU; sums over them, divided by those of the global batch."""

    def forward_backward(self, batch: Batch, iteration: int, loss_scale: float) -> Metrics:
        """See StepModule."""
        self.model.train()
        return self._sum_over_chunks(batch, iteration, loss_scale)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Metrics:
        """See StepModule."""
        self.model.eval()
        return self._sum_over_chunks(batch, None, 1.0)

    def _sum_over_chunks(self, batch: Batch, iteration: int | None, loss_scale: float) -> Metrics:
        zero = torch.zeros((), device=self.topology.device)  # what a rank without a real question reports
        kinds: dict[str, type[Mean]] = {"loss": Mean, **self.reported}
        sums: dict[str, Metric] = {name: kind(zero, batch.num_questions) for name, kind in kinds.items()}
        for number, questions in enumerate(self._chunks(batch)):
            if iteration is not None:
                start_dropout(self.seed, self.topology, iteration, number)
            output = self.loss(batch.questions(questions))
            if iteration is not None:
                (output.loss * loss_scale).backward()
            add_metrics(sums, {**output.metrics, "loss": Mean(output.loss.detach(), batch.num_questions)})
        return sums

    def _chunks(self, batch: Batch) -> list[Tensor]:
        """Numbers of the real questions, those of like length together; none on a rank that has fillers alone."""
        longest = batch.passages.tokens.lengths.view_as(batch.is_real).amax(1)
        questions = batch.is_real[:, 0].nonzero()[:, 0]
        if not len(questions):
            return []
        return [questions[index] for index in by_length(longest[questions], self._micro_batch_size)]
