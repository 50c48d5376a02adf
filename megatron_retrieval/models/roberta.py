"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT's layers, positions counted behind padding's, one segment."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_retrieval.models.bert import BertEncoder, PostNormConfig
from megatron_retrieval.parallel.topology import ProcessTopology

#: positions are counted behind the id of padding, which has a row of its own
FIRST_POSITION = 2


@dataclass(kw_only=True, frozen=True)
class RobertaConfig(PostNormConfig):
    """Shape and regularisation of a RoBERTa encoder; the defaults are RoBERTa-base."""

    max_position_embeddings: int = 514
    """Rows of the position embeddings; the longest sequence has two tokens less."""
    vocab_size: int = 50265
    """Entries of the vocabulary file."""
    layernorm_epsilon: float = 1e-5
    """Added to the variance in layer norms."""

    @property
    def first_position(self) -> int:
        """See PostNormConfig."""
        return FIRST_POSITION

    @property
    def num_segments(self) -> int:
        """See PostNormConfig; the one that all tokens have."""
        return 1

    def build_encoder(self, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> BertEncoder:
        """See EncoderShape."""
        return BertEncoder(self, topology, dtype)


@dataclass(kw_only=True, frozen=True)
class XlmRobertaConfig(RobertaConfig):
    """Shape and regularisation of an XLM-R encoder (Conneau et al. 2020, arXiv 1911.02116): a RoBERTa with words of a
    hundred languages; the defaults are XLM-R-base."""

    vocab_size: int = 250002
    """Entries of the vocabulary file."""
