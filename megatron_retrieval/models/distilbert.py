"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT's layers, fewer of them, without segment embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from megatron_retrieval.models.bert import BertEncoder, PostNormConfig
from megatron_retrieval.parallel.topology import ProcessTopology


@dataclass(kw_only=True, frozen=True)
class DistilBertConfig(PostNormConfig):
    """Shape and regularisation of a DistilBERT encoder; the defaults are its base size."""

    num_layers: int = 6
    """Transformer layers."""

    @property
    def pooler_activation(self) -> Literal["tanh", "relu", "gelu"]:
        """See EncoderShape."""
        return "relu"

    def build_encoder(self, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> BertEncoder:
        """See EncoderShape."""
        return BertEncoder(self, topology, dtype)
