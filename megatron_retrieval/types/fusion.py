"""Batches of fusion readers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.types.tokens import TokenBatch, cut_labels, rows_of_groups, to_device


@dataclass(frozen=True)
class FusionBatch:
    """One rank's share of a global batch of questions, each with K texts (the question together with a passage, or the
    question alone) and the answer to write; all ranks hold the same number of questions.

    Attributes:
        texts: n * K rows; those of question j begin at row j * K.
        is_real: [n, K] bool, False for fillers, be it a text or a question with all of its texts.
        labels: [n, L] int64, the answer with its end token, -1 behind it and in fillers.
    """

    texts: TokenBatch
    is_real: Tensor
    labels: Tensor

    def questions(self, index: Tensor) -> FusionBatch:
        """The questions `index` [n] with their texts, labels cut to the longest; all of it on the CPU."""
        texts = self.texts.rows(rows_of_groups(index, self.is_real.size(1)))
        return FusionBatch(texts, self.is_real[index], cut_labels(self.labels[index]))

    def to(self, device: torch.device) -> FusionBatch:
        is_real, labels = (to_device(column, device) for column in (self.is_real, self.labels))
        return FusionBatch(self.texts.to(device), is_real, labels)
