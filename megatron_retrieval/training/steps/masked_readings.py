"""The side of a masked language model in training with a retriever (Guu et al. 2020, REALM, arXiv 2002.08909)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.examples.retrieved_masks import MaskedTexts, RetrievedMasks
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy
from megatron_retrieval.training.steps.readings import Pass
from megatron_retrieval.types.search import FILLER_ROW, NULL_ROW
from megatron_retrieval.types.tokens import by_length, to_device


@dataclass(frozen=True)
class MaskedReading:
    """See Reading. Masked tokens are predicted one by one, given the rest of the text and a passage, so that what is
    hidden is as likely as all of them together.

    Attributes:
        found: on the CPU.
        is_real: [n, K] bool on the model's device.
        is_null: likewise, the null passage; None where it is no candidate.
        num_tokens: masked tokens of the global batch, scalar on the model's device; None where nobody has counted them.
        batch_size: sequences read at once.
    """

    model: MaskedLanguageModel
    found: MaskedTexts
    is_real: Tensor
    is_null: Tensor | None
    num_tokens: Tensor | None
    batch_size: int

    @property
    def module(self) -> nn.Module:
        """See Reading."""
        return self.model

    @property
    def is_token(self) -> Tensor:
        """[n, L] bool, False behind the masked tokens of a text."""
        return to_device(self.found.labels >= 0, self.is_real.device)

    def each(self) -> Tensor:
        """See Reading."""
        return self.each_mask().sum(2)

    def each_token(self) -> Tensor:
        """See WritingReading; a token does not depend on those before it."""
        return self.each_mask()

    def each_mask(self) -> Tensor:
        """[n, K, L] log p(y_l | x, z) of what every mask hides, with every passage for itself; 0 in fillers."""
        found, device = self.found, self.is_real.device
        num_places = found.labels.size(1)
        likelihoods = torch.zeros(self.is_real.numel() * num_places, device=device)
        for rows in by_length(found.sequences.tokens.lengths, self.batch_size) if len(found.slots) else ():
            part, columns = found.sequences.rows(rows), found.columns[rows]
            text, place = (columns >= 0).nonzero(as_tuple=True)
            slots = found.slots[rows][text]
            labels = found.labels[slots // self.is_real.size(1), place]
            places = text * part.tokens.ids.size(1) + columns[text, place]
            read = part.to(device)
            logits = self.model(read.tokens, to_device(places, device), read.segments)
            own = -vocab_parallel_cross_entropy(logits, to_device(labels, device))
            likelihoods = likelihoods.index_copy(0, to_device(slots * num_places + place, device), own)
        return likelihoods.view(*self.is_real.shape, num_places)


class MaskedReadings:
    """The side of a masked language model; see ReaderSide. Targets are what the mask tokens of a question hide, in
    their order.

    Args:
        batch_size: sequences read at once.
    """

    passes: ClassVar[frozenset[Pass]] = frozenset({"each", "each_token", "each_mask"})

    def __init__(
        self, model: MaskedLanguageModel, texts: RetrievedMasks, topology: ProcessTopology, *, batch_size: int
    ) -> None:
        self._model, self._texts, self._device, self._batch_size = model, texts, topology.device, batch_size

    def reading(self, batch: AskedBatch, rows: Tensor) -> MaskedReading:
        """See ReaderSide; a text that nothing was found for is read alone, in its first place."""
        found = self._texts.find(batch.reader_questions, batch.targets, rows.numpy())
        is_real = rows != FILLER_ROW
        is_real[:, 0] = True
        is_null = rows == NULL_ROW
        return MaskedReading(
            self._model,
            found,
            to_device(is_real, self._device),
            to_device(is_null, self._device) if is_null.any() else None,
            batch.num_target_tokens,
            self._batch_size,
        )

    def without_passages(self, batch: AskedBatch) -> Mapping[str, Tensor]:
        """`log_likelihood_alone`: of the masked tokens."""
        alone = torch.full((len(batch), 1), NULL_ROW)
        return {"log_likelihood_alone": self.reading(batch, alone).each().sum()}
