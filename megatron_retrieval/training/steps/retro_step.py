"""The step of RETRO: the next token of every text, whose later chunks read the neighbours of the earlier ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.models.retro import Retro
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.token_step import TokenStep
from megatron_retrieval.types.metrics import Metrics
from megatron_retrieval.types.neighbours import ChunkedTexts
from megatron_retrieval.types.tokens import by_length


@dataclass(kw_only=True, frozen=True)
class RetroStepConfig(Checked):
    """How the step is computed."""

    micro_batch_size: PositiveInt = 4
    """Texts per forward pass, each a document's part of a sequence; memory and speed depend on it, the result does
    not."""


class RetroStep(TokenStep[ChunkedTexts]):
    """Cross-entropy of all tokens but a document's first; see TokenStep. Evaluation says beside the loss what it is
    without neighbours."""

    counted = "num_tokens"

    def __init__(self, model: Retro, config: RetroStepConfig, topology: ProcessTopology, seed: int) -> None:
        super().__init__(model, topology, seed)
        self.config = config

    def chunks(self, batch: ChunkedTexts) -> Iterator[ChunkedTexts]:
        """See TokenStep."""
        for rows in by_length(batch.tokens.lengths, self.config.micro_batch_size):
            yield batch.rows(rows)

    def logits(self, batch: ChunkedTexts, places: Tensor) -> Tensor:
        """See TokenStep."""
        logits: Tensor = self.model(batch.tokens.to(places.device), places, batch.neighbours)
        return logits

    def evaluate(self, batch: ChunkedTexts) -> Metrics:
        """See StepModule."""
        without = replace(batch, neighbours=batch.neighbours.rows(torch.zeros(0, dtype=torch.int64)))
        return {**super().evaluate(batch), "loss_without_neighbours": super().evaluate(without)["loss"]}
