"""MPNet (Song et al. 2020, arXiv 2004.09297): BERT's layers with a relative position bias beside absolute positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.models.attention import padding_bias
from megatron_retrieval.models.bert import BertEncoder, PostNormConfig
from megatron_retrieval.models.relative_bias import RelativeBias
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.tokens import TokenBatch

#: buckets of distances between tokens, half of them for each direction; distances from the greatest on share one
NUM_BUCKETS, MAX_DISTANCE = 32, 128
#: positions are counted behind the id of padding, which has a row of its own
FIRST_POSITION = 2


@dataclass(kw_only=True, frozen=True)
class MpnetConfig(PostNormConfig):
    """Shape and regularisation of an MPNet encoder; the defaults are MPNet-base."""

    max_position_embeddings: int = 514
    """Rows of the position embeddings; the longest sequence has two tokens less."""
    vocab_size: int = 30527
    """Entries of the vocabulary file."""
    layernorm_epsilon: float = 1e-5
    """Added to the variance in layer norms."""

    @property
    def first_position(self) -> int:
        """See PostNormConfig."""
        return FIRST_POSITION

    def build_encoder(self, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> MpnetEncoder:
        """See EncoderShape."""
        return MpnetEncoder(self, topology, dtype)


class MpnetEncoder(BertEncoder):
    """See BertEncoder; one table of relative positions serves all layers, sharded by heads."""

    def __init__(self, config: MpnetConfig, topology: ProcessTopology, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, topology, dtype)
        self.relative_bias = RelativeBias(
            num_buckets=NUM_BUCKETS,
            max_distance=MAX_DISTANCE,
            num_heads=config.num_attention_heads // topology.tp_size,
            is_causal=False,
        ).to(dtype)

    def attention_bias(self, batch: TokenBatch) -> Tensor:
        """See BertEncoder."""
        num_tokens = batch.ids.size(1)
        relative: Tensor = self.relative_bias(num_tokens, num_tokens)
        padding = padding_bias(batch.lengths, num_tokens, relative.dtype, batch.ids.device)
        return relative if padding is None else relative + padding
