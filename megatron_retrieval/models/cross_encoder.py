"""A cross-encoder: one score for a question read together with a passage (Nogueira & Cho 2019, arXiv 1901.04085)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.encoder import EncoderShape, first_states, mean_states
from megatron_retrieval.models.pair_encoder import PairEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.extractive import ExtractivePassages

_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": F.gelu}
_POOLINGS = {"cls": first_states, "mean": mean_states}


@dataclass(kw_only=True, frozen=True)
class CrossEncoderConfig:
    """How a pair of texts becomes a score."""

    encoder: EncoderShape = field(default_factory=BertConfig)
    """The encoder of the pair."""
    pooling: Literal["cls", "mean"] = "cls"
    """A pair's state: the hidden state of [CLS], or the mean over its tokens, as public rerankers of ModernBERT have
    it."""


class CrossEncoder(PairEncoder):
    """An encoder over question and passage, with a pooler and a linear score: w . f(W h + b) + c of the pair's state h;
    f is tanh, or what else the family's classifiers have (DistilBERT: ReLU; ModernBERT: GELU and a norm, without b).

    Args:
        config: shape of the model.
    """

    pooler: nn.Linear
    pooler_norm: nn.LayerNorm
    score: nn.Linear

    def __init__(
        self,
        config: CrossEncoderConfig,
        topology: ProcessTopology,
        dtype: torch.dtype = torch.float32,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(config.encoder, topology, dtype, seed=seed)
        self.config = config

    def heads(self, width: int, dtype: torch.dtype) -> dict[str, nn.Module]:
        """See PairEncoder."""
        shape = self.shape
        heads: dict[str, nn.Module] = {"pooler": nn.Linear(width, width, bias=shape.head_biases, dtype=dtype)}
        if shape.pooler_norm:
            heads["pooler_norm"] = nn.LayerNorm(width, shape.norm_epsilon, bias=shape.head_biases, dtype=dtype)
        return {**heads, "score": nn.Linear(width, 1, dtype=dtype)}

    def forward(self, pairs: ExtractivePassages) -> Tensor:
        """P pairs of question and passage -> [P] float32 scores, higher where the passage answers; any real number."""
        states = _POOLINGS[self.config.pooling](self.bert, pairs.tokens, pairs.segments)
        pooled = _ACTIVATIONS[self.shape.pooler_activation](self.pooler(states.to(self.pooler.weight.dtype)))
        if self.shape.pooler_norm:
            pooled = self.pooler_norm(pooled)
        scores: Tensor = self.score(pooled).float()[:, 0]
        return scores
