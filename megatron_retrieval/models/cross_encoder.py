"""A cross-encoder: one score for a question read together with a passage (Nogueira & Cho 2019, arXiv 1901.04085)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megatron_retrieval.models.encoder import first_states
from megatron_retrieval.models.pair_encoder import PairEncoder
from megatron_retrieval.types.extractive import ExtractivePassages


class CrossEncoder(PairEncoder):
    """An encoder over question and passage, with a pooler and a linear score: w . f(W h_[CLS] + b) + c; f is tanh, or
    what else the family's classifiers have (DistilBERT: ReLU)."""

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
        states = first_states(self.bert, pairs.tokens, pairs.segments)
        activation = {"tanh": torch.tanh, "relu": torch.relu}[self.shape.pooler_activation]
        scores: Tensor = self.score(activation(self.pooler(states))).float()[:, 0]
        return scores
