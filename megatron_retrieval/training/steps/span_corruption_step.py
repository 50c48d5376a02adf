"""The step of T5's pretraining: write what was taken out of the texts of a global batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.models.t5 import T5, shift_right
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.token_step import TokenStep
from megatron_retrieval.types.pretraining import CorruptedBatch
from megatron_retrieval.types.tokens import by_length


@dataclass(kw_only=True, frozen=True)
class SpanCorruptionConfig(Checked):
    """How the step is computed."""

    micro_batch_size: PositiveInt = 8
    """Texts per forward pass; memory and speed depend on it, the result does not."""


class SpanCorruptionStep(TokenStep[CorruptedBatch]):
    """Cross-entropy of the targets: spans, their sentinels and the end token; see TokenStep."""

    counted = "num_target_tokens"

    def __init__(self, model: T5, config: SpanCorruptionConfig, topology: ProcessTopology, seed: int) -> None:
        super().__init__(model, topology, seed)
        self.config = config

    def chunks(self, batch: CorruptedBatch) -> Iterator[CorruptedBatch]:
        """See TokenStep."""
        for rows in by_length(batch.tokens.lengths, self.config.micro_batch_size):
            yield batch.rows(rows)

    def logits(self, batch: CorruptedBatch, places: Tensor) -> Tensor:
        """See TokenStep."""
        batch = batch.to(places.device)
        logits: Tensor = self.model(batch.tokens, shift_right(batch.labels), places)
        return logits
