"""The step of BERT's pretraining: predict the masked tokens of a global batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.token_step import TokenStep
from megatron_retrieval.types.pretraining import MaskedBatch
from megatron_retrieval.types.tokens import by_length


@dataclass(kw_only=True, frozen=True)
class MaskedLMConfig(Checked):
    """How the step is computed."""

    micro_batch_size: PositiveInt = 8
    """Sequences per forward pass; memory and speed depend on it, the result does not."""


class MaskedLMStep(TokenStep[MaskedBatch]):
    """Cross-entropy of the masked tokens; see TokenStep."""

    counted = "num_masked_tokens"

    def __init__(
        self, model: MaskedLanguageModel, config: MaskedLMConfig, topology: ProcessTopology, seed: int
    ) -> None:
        super().__init__(model, topology, seed)
        self.config = config

    def chunks(self, batch: MaskedBatch) -> Iterator[MaskedBatch]:
        """See TokenStep."""
        for rows in by_length(batch.tokens.lengths, self.config.micro_batch_size):
            yield batch.rows(rows)

    def logits(self, batch: MaskedBatch, places: Tensor) -> Tensor:
        """See TokenStep."""
        logits: Tensor = self.model(batch.tokens.to(places.device), places)
        return logits
