"""An extractive reader: scores passages and spans of answers in them (DPR, arXiv 2004.04906, section 6.1)."""

from __future__ import annotations

import torch
from torch import nn

from megatron_retrieval.models.pair_encoder import PairEncoder
from megatron_retrieval.types.extractive import ExtractivePassages, SpanLogits


class ExtractiveReader(PairEncoder):
    """An encoder over question and passage, with heads for start, end and passage."""

    span: nn.Linear
    selection: nn.Linear

    def heads(self, width: int, dtype: torch.dtype) -> dict[str, nn.Module]:
        """See PairEncoder."""
        return {
            "span": nn.Linear(width, 2, dtype=dtype),
            "selection": nn.Linear(width, 1, dtype=dtype),
        }

    def forward(self, passages: ExtractivePassages) -> SpanLogits:
        """P passages of T tokens -> logits of tokens and of passages; they are undefined outside the text."""
        states = self.bert(passages.tokens, passages.segments)
        starts, ends = self.span(states).float().unbind(2)
        return SpanLogits(starts, ends, self.selection(states[:, 0]).float()[:, 0])
