"""What steps have in common whose loss is the mean over tokens to predict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from megatron_retrieval.parallel.collectives import all_reduce_sum
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_accuracy, vocab_parallel_cross_entropy
from megatron_retrieval.training.steps.dropout import start_dropout
from megatron_retrieval.types.metrics import Count, Mean, Metrics, Rate
from megatron_retrieval.types.tokens import to_device


class LabelledBatch(Protocol):
    """A rank's share of a batch; labels are negative where nothing is to be predicted."""

    @property
    def labels(self) -> Tensor: ...


Batch = TypeVar("Batch", bound=LabelledBatch)


class TokenStep(ABC, Generic[Batch]):
    """Loss and accuracy are means over the tokens to predict of the global batch, each token weighing the same.

    Dropout depends on (seed, iteration, rank, micro-batch) only.
    """

    #: the metric that counts the tokens
    counted: ClassVar[str]

    def __init__(self, model: nn.Module, topology: ProcessTopology, seed: int) -> None:
        self.model, self.topology, self.seed = model, topology, seed

    @abstractmethod
    def chunks(self, batch: Batch) -> Iterator[Batch]:
        """The batch in parts for one forward pass each; fillers may be left out."""

    @abstractmethod
    def logits(self, batch: Batch, places: Tensor) -> Tensor:
        """[M, V / tensor-parallel size] float32 logits of the tokens to predict.

        Args:
            batch: one chunk, on the CPU.
            places: [M] int64 on the model's device, row * L + column of their labels.
        """

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
        device = self.topology.device
        # batches are cut on the CPU, where the host need not wait for sizes
        num_labels = to_device((batch.labels >= 0).sum().float(), device)
        # no rank knows how many the others have
        total = all_reduce_sum(num_labels, self.topology.groups.dp)
        loss_part, accuracy_part = torch.zeros_like(total), torch.zeros_like(total)
        for number, chunk in enumerate(self.chunks(batch)):
            places = (chunk.labels.flatten() >= 0).nonzero()[:, 0]
            if not len(places):  # fillers only; tensor-parallel ranks hold the same rows, hence agree
                continue
            labels = to_device(chunk.labels.flatten()[places], device)
            if iteration is not None:
                start_dropout(self.seed, self.topology, iteration, number)
            logits = self.logits(chunk, to_device(places, device))
            is_best = vocab_parallel_accuracy(logits, labels, self.topology.groups.tp)
            loss = vocab_parallel_cross_entropy(logits, labels).sum() / total
            if iteration is not None and loss.requires_grad:  # not where all that was computed is frozen
                (loss * loss_scale).backward()
            loss_part += loss.detach()
            accuracy_part += is_best.sum() / total
        return {"loss": Mean(loss_part, total), "accuracy": Rate(accuracy_part, total), self.counted: Count(num_labels)}
