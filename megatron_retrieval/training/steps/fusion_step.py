"""The step of readers that write: the answer's tokens, from all passages of a question together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.models.t5 import shift_right
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.token_step import TokenStep
from megatron_retrieval.types.fusion import FusionBatch
from megatron_retrieval.types.tokens import by_length, real_lengths, to_device


@dataclass(kw_only=True, frozen=True)
class FusionStepConfig(Checked):
    """How the step is computed."""

    micro_batch_size: PositiveInt = 1
    """Questions per forward pass, each with all of its passages; memory and speed depend on it, the result does not."""


class FusionStep(TokenStep[FusionBatch]):
    """Negative log-likelihood of the answers' tokens; see TokenStep."""

    counted = "num_answer_tokens"

    def __init__(self, reader: FusionReader, config: FusionStepConfig, topology: ProcessTopology, seed: int) -> None:
        super().__init__(reader, topology, seed)
        self.reader, self.config = reader, config

    def chunks(self, batch: FusionBatch) -> Iterator[FusionBatch]:
        """Questions with as many tokens to read stand together: padding then costs little."""
        num_tokens = real_lengths(batch.texts, batch.is_real).sum(1)
        asked = (batch.labels >= 0).any(1).nonzero()[:, 0]
        for index in by_length(num_tokens[asked], self.config.micro_batch_size):
            yield batch.questions(asked[index])

    def logits(self, batch: FusionBatch, places: Tensor) -> Tensor:
        """See TokenStep."""
        decoder_ids = to_device(shift_right(batch.labels, self.reader.model.start_id), places.device)
        logits: Tensor = self.reader(batch.texts, batch.is_real, decoder_ids, places=places)
        return logits
