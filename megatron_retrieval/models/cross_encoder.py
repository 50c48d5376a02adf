"""A cross-encoder: one score for a question read together with a passage (Nogueira & Cho 2019, arXiv 1901.04085)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megatron_retrieval.models.pair_encoder import PairEncoder
from megatron_retrieval.types.extractive import ExtractivePassages


class CrossEncoder(PairEncoder):
    """An encoder over question and passage, with BERT's pooler and a linear score: w . tanh(W h_[CLS] + b) + c."""

    pooler: nn.Linear
    score: nn.Linear

    def heads(self, width: int, dtype: torch.dtype) -> dict[str, nn.Module]:
        """See PairEncoder."""
        return {
            "pooler": nn.Linear(width, width, dtype=dtype),
            "score": nn.Linear(width, 1, dtype=dtype),
        }

    def forward(self, pairs: ExtractivePassages) -> Tensor:
        """P pairs of question and passage -> [P] float32 scores, higher where the passage answers; any real number."""
        states = self.bert(pairs.tokens, pairs.segments)
        scores: Tensor = self.score(torch.tanh(self.pooler(states[:, 0]))).float()[:, 0]
        return scores
