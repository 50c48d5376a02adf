"""The step of causal readers: the answer's tokens behind a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.models.causal_reader import CausalReader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.token_step import TokenStep
from megatron_retrieval.types.causal import ContinuedBatch
from megatron_retrieval.types.tokens import by_length


@dataclass(kw_only=True, frozen=True)
class CausalStepConfig(Checked):
    """How the step is computed."""

    micro_batch_size: PositiveInt = 4
    """Questions per forward pass, each with one prompt; memory and speed depend on it, the result does not."""


class CausalStep(TokenStep[ContinuedBatch]):
    """Negative log-likelihood of the answers' tokens; see TokenStep."""

    counted = "num_answer_tokens"

    def __init__(self, reader: CausalReader, config: CausalStepConfig, topology: ProcessTopology, seed: int) -> None:
        super().__init__(reader, topology, seed)
        self.reader, self.config = reader, config

    def chunks(self, batch: ContinuedBatch) -> Iterator[ContinuedBatch]:
        """See TokenStep."""
        asked = (batch.labels >= 0).any(1).nonzero()[:, 0]
        for index in by_length(batch.tokens.lengths[asked], self.config.micro_batch_size):
            yield batch.rows(asked[index])

    def logits(self, batch: ContinuedBatch, places: Tensor) -> Tensor:
        """See TokenStep."""
        return self.reader.logits(batch.tokens, places)
