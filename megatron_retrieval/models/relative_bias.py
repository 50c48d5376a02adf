"""T5's relative position bias: a learned number per head and bucket of distances, added to the attention logits
(Raffel et al. 2020, arXiv 1910.10683, section 2.1)."""

from __future__ import annotations

import math

import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor, nn


class RelativeBias(nn.Module):
    """One table for all layers of a stack, sharded over tensor-parallel ranks by heads.

    Args:
        num_heads: heads of this rank.
        is_causal: buckets for earlier tokens only; later tokens are hidden.
    """

    def __init__(self, *, num_buckets: int, max_distance: int, num_heads: int, is_causal: bool) -> None:
        super().__init__()
        self.max_distance, self.is_causal = max_distance, is_causal
        self.weight = nn.Parameter(torch.zeros(num_buckets, num_heads))
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=1, stride=1)

    def forward(self, num_queries: int, num_keys: int, first_query: int = 0) -> Tensor:
        """The bias of queries from position `first_query` and keys from position 0: [1, heads of this rank, L, T].

        Pairs of one distance share a value: every row is a window of the vector of all distances.
        """
        last_query = first_query + num_queries - 1
        distances = torch.arange(-last_query, num_keys - first_query, device=self.weight.device)
        buckets = relative_buckets(distances, len(self.weight), self.max_distance, is_causal=self.is_causal)
        values = self.weight[buckets].t()
        if self.is_causal:
            values = values.masked_fill(distances > 0, torch.finfo(values.dtype).min)
        return values.unfold(1, num_keys, 1).flip(1)[None]


def relative_buckets(distances: Tensor, num_buckets: int, max_distance: int, *, is_causal: bool) -> Tensor:
    """The bucket of every distance.

    Half of the buckets of a direction hold one distance each, the other half ranges that grow by a constant factor up
    to `max_distance`; greater distances share the last bucket.

    Args:
        distances: int64, position of the key minus position of the query.
        is_causal: all buckets are for earlier keys, later ones share the bucket of distance 0; else half of the buckets
            for each direction.
    """
    if is_causal:
        first, lengths = torch.zeros_like(distances), (-distances).clamp(min=0)
    else:
        num_buckets //= 2
        first, lengths = (distances > 0) * num_buckets, distances.abs()
    num_exact = num_buckets // 2
    growth = torch.log(lengths.clamp(min=1).float() / num_exact) / math.log(max_distance / num_exact)
    far = num_exact + (growth * (num_buckets - num_exact)).long()
    return first + torch.where(lengths < num_exact, lengths, far.clamp(max=num_buckets - 1))
