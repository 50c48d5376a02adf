"""An extractive reader: scores passages and spans of answers in them (DPR, arXiv 2004.04906, section 6.1)."""

from __future__ import annotations

import torch
from torch import nn

from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.initialise import initialise_normal
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.extractive import ExtractivePassages, SpanLogits


class ExtractiveReader(nn.Module):
    """An encoder over question and passage, with heads for start, end and passage.

    Args:
        config: shape of the encoder.
        topology: parameters are sharded over its tensor-parallel group, on its device.
        dtype: of parameters and activations; logits are always float32.
        seed: of the initial weights, which are equal at any tensor-parallel size.
    """

    def __init__(
        self, config: EncoderShape, topology: ProcessTopology, dtype: torch.dtype = torch.float32, *, seed: int = 0
    ) -> None:
        super().__init__()
        # of whatever family; the name is that of its parameters in checkpoints
        self.bert = config.build_encoder(topology, dtype)
        # small, hence replicated on all tensor-parallel ranks
        self.span = nn.Linear(config.hidden_size, 2, dtype=dtype)
        self.selection = nn.Linear(config.hidden_size, 1, dtype=dtype)
        for head in (self.span, self.selection):
            nn.init.zeros_(head.bias)
        initialise_normal(self, topology, std=config.init_method_std, seed=seed)
        self.to(topology.device)

    def forward(self, passages: ExtractivePassages) -> SpanLogits:
        """P passages of T tokens -> logits of tokens and of passages; they are undefined outside the text."""
        states = self.bert(passages.tokens, passages.segments)
        starts, ends = self.span(states).float().unbind(2)
        return SpanLogits(starts, ends, self.selection(states[:, 0]).float()[:, 0])
