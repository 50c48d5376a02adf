"""A learned number per head and distance, added to the attention logits, where few distances occur."""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor, nn


class ExactBias(nn.Module):
    """One table for all layers of a stack, sharded over tensor-parallel ranks by heads.

    Args:
        lowest: distance, position of the query minus position of the key; up to `highest`. Distances beyond have the
            number of the nearest of these.
        num_heads: heads of this rank.
    """

    def __init__(self, *, lowest: int, highest: int, num_heads: int) -> None:
        super().__init__()
        self._lowest, self._highest = lowest, highest
        self.weight = nn.Parameter(torch.zeros(highest - lowest + 1, num_heads))
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=1, stride=1)

    def forward(self, num_queries: int, num_keys: int, first_query: int = 0) -> Tensor:
        """The bias of queries from position `first_query` and keys from position 0: [1, heads of this rank, L, T]."""
        device = self.weight.device
        queries, keys = torch.arange(num_queries, device=device) + first_query, torch.arange(num_keys, device=device)
        distance = (queries[:, None] - keys).clamp(self._lowest, self._highest)
        return self.weight[distance - self._lowest].permute(2, 0, 1)[None]
