"""The step of BERT's pretraining: predict the masked tokens of a global batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel import ProcessTopology
from megatron_retrieval.parallel.collectives import all_reduce_sum
from megatron_retrieval.parallel.megatron_compat import seed_dropout
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_accuracy, vocab_parallel_cross_entropy
from megatron_retrieval.training.step import length_sorted_chunks
from megatron_retrieval.types import MaskedBatch
from megatron_retrieval.utils.seeds import derive_seed


@dataclass(kw_only=True, frozen=True)
class MaskedLMConfig:
    """How the step is computed."""

    micro_batch_size: int = 8
    """Sequences per forward pass; memory and speed depend on it, the result does not."""


class MaskedLMStep:
    """Loss and accuracy are means over the masked tokens of the global batch, each token weighing the same.

    Dropout depends on (seed, iteration, rank, micro-batch) only.
    """

    def __init__(
        self, model: MaskedLanguageModel, config: MaskedLMConfig, topology: ProcessTopology, seed: int
    ) -> None:
        self.model, self.config, self.topology, self.seed = model, config, topology, seed

    def forward_backward(self, batch: MaskedBatch, iteration: int, loss_scale: float) -> Mapping[str, Tensor]:
        """See StepModule."""
        self.model.train()
        return self._sum_over_chunks(batch, iteration, loss_scale)

    @torch.no_grad()
    def evaluate(self, batch: MaskedBatch) -> Mapping[str, Tensor]:
        """See StepModule; the examples that it counts are masked tokens."""
        self.model.eval()
        metrics = self._sum_over_chunks(batch, None, 1.0)
        return {**metrics, "num_examples": metrics["num_masked_tokens"]}

    def _sum_over_chunks(self, batch: MaskedBatch, iteration: int | None, loss_scale: float) -> dict[str, Tensor]:
        batch = batch.to(self.topology.device)
        num_masked = (batch.labels >= 0).sum().float()
        # no rank knows what the others masked
        total = all_reduce_sum(num_masked, self.topology.groups.dp)
        sums = {"loss": torch.zeros_like(total), "accuracy": torch.zeros_like(total)}
        for number, rows in enumerate(length_sorted_chunks(batch.tokens, self.config.micro_batch_size)):
            chunk = batch.rows(rows)
            places = (chunk.labels.flatten() >= 0).nonzero()[:, 0]
            if not len(places):  # fillers only; tensor-parallel ranks hold the same rows, hence agree
                continue
            if iteration is not None:
                self._seed_dropout(iteration, number)
            losses, is_best = self._losses(chunk, places)
            loss = losses.sum() / total
            if iteration is not None:
                (loss * loss_scale).backward()
            sums["loss"] += loss.detach()
            sums["accuracy"] += is_best.sum() / total
        return {**sums, "num_masked_tokens": num_masked}

    def _losses(self, batch: MaskedBatch, places: Tensor) -> tuple[Tensor, Tensor]:
        """[M] losses of the tokens at `places`, and whether each was the likeliest."""
        labels = batch.labels.flatten()[places]
        logits = self.model(batch.tokens, places)
        is_best = vocab_parallel_accuracy(logits, labels, self.topology.groups.tp)
        return vocab_parallel_cross_entropy(logits, labels), is_best

    def _seed_dropout(self, iteration: int, chunk: int) -> None:
        seed = derive_seed(self.seed, "dropout", iteration, self.topology.dp_rank, chunk)
        seed_dropout(seed >> 16, self.topology.tp_rank)
