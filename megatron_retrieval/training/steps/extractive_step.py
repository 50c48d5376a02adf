"""The step of extractive readers: find the answer in a passage that has one, and that passage among others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.objectives.extractive import METRICS, extractive_loss
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.dropout import start_dropout
from megatron_retrieval.types.extractive import ExtractiveBatch, SpanLogits
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.metrics import Mean, Metric, Metrics, add_metrics
from megatron_retrieval.types.tokens import by_length, to_device


@dataclass(kw_only=True, frozen=True)
class ExtractiveStepConfig(Checked):
    """The loss of an extractive reader and how its step is computed."""

    marginal_likelihood: bool = True
    """All occurrences of an answer share the likelihood; off: the likeliest one has it all."""
    micro_batch_size: PositiveInt = 1
    """Questions per forward pass, each with all of its passages; memory and speed depend on it, the result does not."""


class ExtractiveStep:
    """Loss and accuracies are means over the questions of the global batch.

    Dropout depends on (seed, iteration, rank, micro-batch) only.
    """

    def __init__(
        self, model: ExtractiveReader, config: ExtractiveStepConfig, topology: ProcessTopology, seed: int
    ) -> None:
        self.model, self.config, self.topology, self.seed = model, config, topology, seed

    def forward_backward(self, batch: ExtractiveBatch, iteration: int, loss_scale: float) -> Metrics:
        """See StepModule."""
        self.model.train()
        return self._sum_over_chunks(batch, iteration, loss_scale)

    @torch.no_grad()
    def evaluate(self, batch: ExtractiveBatch) -> Metrics:
        """See StepModule."""
        self.model.eval()
        return self._sum_over_chunks(batch, None, 1.0)

    def _sum_over_chunks(self, batch: ExtractiveBatch, iteration: int | None, loss_scale: float) -> Metrics:
        zero = torch.zeros((), device=self.topology.device)  # what a rank without a real question reports
        kinds: dict[str, type[Mean]] = {"loss": Mean, **METRICS}
        sums: dict[str, Metric] = {name: kind(zero, batch.num_questions) for name, kind in kinds.items()}
        for number, questions in enumerate(self._chunks(batch)):
            if iteration is not None:
                start_dropout(self.seed, self.topology, iteration, number)
            output = self._loss(batch.questions(questions))
            if iteration is not None:
                (output.loss * loss_scale).backward()
            add_metrics(sums, {**output.metrics, "loss": Mean(output.loss.detach(), batch.num_questions)})
        return sums

    def _chunks(self, batch: ExtractiveBatch) -> list[Tensor]:
        """Numbers of the real questions, those of like length together."""
        longest = batch.passages.tokens.lengths.view_as(batch.is_real).amax(1)
        questions = batch.is_real[:, 0].nonzero()[:, 0]
        return [questions[index] for index in by_length(longest[questions], self.config.micro_batch_size)]

    def _loss(self, batch: ExtractiveBatch) -> LossOutput:
        """Of some questions, on the CPU."""
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
