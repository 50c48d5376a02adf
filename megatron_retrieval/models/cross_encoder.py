"""A cross-encoder: one score for a question read together with a passage (Nogueira & Cho 2019, arXiv 1901.04085)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.initialise import initialise_normal
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.extractive import ExtractivePassages


class CrossEncoder(nn.Module):
    """An encoder over question and passage, with BERT's pooler and a linear score: w . tanh(W h_[CLS] + b) + c.

    Args:
        config: shape of the encoder.
        topology: parameters are sharded over its tensor-parallel group, on its device.
        dtype: of parameters and activations; scores are always float32.
        seed: of the initial weights, which are equal at any tensor-parallel size.
    """

    def __init__(
        self, config: EncoderShape, topology: ProcessTopology, dtype: torch.dtype = torch.float32, *, seed: int = 0
    ) -> None:
        super().__init__()
        # of whatever family; the name is that of its parameters in checkpoints
        self.bert = config.build_encoder(topology, dtype)
        # small, hence replicated on all tensor-parallel ranks
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size, dtype=dtype)
        self.score = nn.Linear(config.hidden_size, 1, dtype=dtype)
        for layer in (self.pooler, self.score):
            nn.init.zeros_(layer.bias)
        initialise_normal(self, topology, std=config.init_method_std, seed=seed)
        self.to(topology.device)

    def forward(self, pairs: ExtractivePassages) -> Tensor:
        """P pairs of question and passage -> [P] float32 scores, higher where the passage answers; any real number."""
        states = self.bert(pairs.tokens, pairs.segments)
        scores: Tensor = self.score(torch.tanh(self.pooler(states[:, 0]))).float()[:, 0]
        return scores
