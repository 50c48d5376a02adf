"""Prompts together with the answers that continue them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_retrieval.types.tokens import WIDTH_STEP, TokenBatch, to_device


@dataclass(frozen=True)
class ContinuedBatch:
    """n prompts, each continued by an answer to learn; on one rank, its share of a global batch.

    Attributes:
        tokens: prompt and answer, without the answer's last token, which nothing follows.
        labels: [n, T] int64, at every place the token after it, where that is one of the answer; -1 elsewhere and in
            fillers.
    """

    tokens: TokenBatch
    labels: Tensor

    def rows(self, index: Tensor) -> ContinuedBatch:
        """The rows `index` [m], cut like their tokens; all of it on the CPU."""
        tokens = self.tokens.rows(index)
        return ContinuedBatch(tokens, self.labels[index, : tokens.ids.size(1)])

    def to(self, device: torch.device) -> ContinuedBatch:
        return ContinuedBatch(self.tokens.to(device), to_device(self.labels, device))


def continued(prompts: TokenBatch, answers: Tensor) -> ContinuedBatch:
    """Put prompts and answers together; all of it on the CPU.

    Args:
        prompts: what goes with them stays with them.
        answers: [n, L] int64 with their end tokens, -1 behind them; nothing but -1 for fillers.
    """
    num_tokens = (answers >= 0).sum(1)
    lengths = prompts.lengths + (num_tokens - 1).clamp(min=0)
    width = -(-int(lengths.max()) // WIDTH_STEP) * WIDTH_STEP if len(lengths) else 0
    ids, labels = torch.zeros(len(lengths), width, dtype=torch.int64), torch.full((len(lengths), width), -1)
    copied = min(width, prompts.ids.size(1))
    ids[:, :copied] = prompts.ids[:, :copied]
    rows, columns = (answers >= 0).nonzero(as_tuple=True)
    tokens, places = answers[rows, columns], prompts.lengths[rows] + columns
    labels[rows, places - 1] = tokens
    is_read = places < lengths[rows]
    ids[rows[is_read], places[is_read]] = tokens[is_read]
    return ContinuedBatch(replace(prompts, ids=ids, lengths=lengths), labels)
