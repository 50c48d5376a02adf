"""The step of extractive readers: find the answer in a passage that has one, and that passage among others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.objectives.extractive import METRICS, extractive_loss
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.question_step import QuestionStep
from megatron_retrieval.types.extractive import ExtractiveBatch, SpanLogits
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.tokens import to_device


@dataclass(kw_only=True, frozen=True)
class ExtractiveStepConfig(Checked):
    """The loss of an extractive reader and how its step is computed."""

    marginal_likelihood: bool = True
    """All occurrences of an answer share the likelihood; off: the likeliest one has it all."""
    micro_batch_size: PositiveInt = 1
    """Questions per forward pass, each with all of its passages; memory and speed depend on it, the result does not."""


class ExtractiveStep(QuestionStep[ExtractiveBatch]):
    """See QuestionStep; fillers are not computed."""

    reported = METRICS
    model: ExtractiveReader

    def __init__(
        self, model: ExtractiveReader, config: ExtractiveStepConfig, topology: ProcessTopology, seed: int
    ) -> None:
        super().__init__(model, topology, seed, config.micro_batch_size)
        self.config = config

    def loss(self, batch: ExtractiveBatch) -> LossOutput:
        """See QuestionStep."""
        logits = self._logits(batch)
        batch = batch.to(self.topology.device)
        return extractive_loss(
            logits,
            batch.passages.is_text,
            batch.is_real,
            batch.spans,
            batch.num_questions,
            marginal=self.config.marginal_likelihood,
        )

    def _logits(self, batch: ExtractiveBatch) -> SpanLogits:
        """Of all passages; fillers are not computed but zero."""
        device, is_real = self.topology.device, batch.is_real.flatten()
        if bool(is_real.all()):
            logits: SpanLogits = self.model(batch.passages.to(device))
            return logits
        rows = is_real.nonzero()[:, 0]
        real = self.model(batch.passages.rows(rows).to(device))
        rows, shape = to_device(rows, device), batch.passages.tokens.ids.shape
        starts, ends = (
            part.new_zeros(shape).index_put((rows,), _widened(part, shape[1])) for part in (real.starts, real.ends)
        )
        return SpanLogits(starts, ends, real.selection.new_zeros(shape[0]).index_put((rows,), real.selection))


def _widened(values: Tensor, width: int) -> Tensor:
    """[P, T] -> [P, width], zeros added."""
    return torch.nn.functional.pad(values, (0, width - values.size(1)))
