"""What retriever and reader think of questions and the passages found for them, to be looked at rather than learned."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.objectives.end_to_end import log_priors, posteriors, sum_over_passages
from megatron_retrieval.training.steps.readings import Reading
from megatron_retrieval.types.search import FILLER_ROW
from megatron_retrieval.types.tokens import to_device


@dataclass(frozen=True)
class Observed:
    """Of n questions with K candidates each, all without gradient.

    Attributes:
        rows: [n, K] of the evidence, on the CPU.
        scores: [n, K] s(q, z) / tau.
        likelihoods: [n, K] log p(a | q, z), -inf where there is no chance.
        alone: [n] log p(a | q), by the reader that sees the question alone; -inf for one that needs passages.
    """

    rows: Tensor
    scores: Tensor
    likelihoods: Tensor
    alone: Tensor

    @property
    def priors(self) -> Tensor:
        """[n, K] log p(z | q), -inf for fillers."""
        return log_priors(self.scores, self._is_real)

    @property
    def marginal(self) -> Tensor:
        """[n] log sum_z p(z | q) p(a | q, z)."""
        return sum_over_passages(self.priors + self.likelihoods, self._is_real)

    @property
    def posterior(self) -> Tensor:
        """[n, K] p(z | q, a); 0 everywhere for a question without a chance."""
        return posteriors(self.priors, self.likelihoods)

    @property
    def _is_real(self) -> Tensor:
        return to_device(self.rows != FILLER_ROW, self.scores.device)


def answer_likelihoods(reading: Any, batch: AskedBatch, skipped: Collection[int], *, by_token: bool) -> Tensor:
    """[n, K] log p(a | q, z).

    Args:
        by_token: the reading has the pass `each_token`.
        skipped: token ids of targets that do not count, such as sentinels; nor does the end token, of a reader that
            writes.
    """
    if not by_token:
        own: Reading = reading
        return own.each()
    tokens: Tensor = reading.each_token()
    counts = torch.zeros(len(batch), tokens.size(2), dtype=torch.bool)
    for row in range(len(batch)):
        target = batch.targets[row][: tokens.size(2)].tolist()
        counts[row, : len(target)] = torch.tensor([number not in skipped for number in target])
    return tokens.masked_fill(~to_device(counts, tokens.device)[:, None], 0).sum(2)
