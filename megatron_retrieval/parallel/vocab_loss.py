"""Cross-entropy over a vocabulary that is sharded over tensor-parallel ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from torch import Tensor


def vocab_parallel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label], without gathering the vocabulary.

    Args:
        logits: [M, V / tensor-parallel size] float32, this rank's part; overwritten with the softmax.
        labels: [M] int64 in the whole vocabulary.

    Returns:
        [M] float32, equal on all tensor-parallel ranks.
    """
    losses: Tensor = tensor_parallel.vocab_parallel_cross_entropy(logits, labels)
    return losses


@torch.no_grad()
def vocab_parallel_accuracy(logits: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[M] bool: whether the label has the highest logit of the vocabulary; arguments as above."""
    first = group.rank() * logits.size(1)
    places = labels - first
    is_here = (places >= 0) & (places < logits.size(1))
    lowest = torch.finfo(logits.dtype).min
    of_label = logits.gather(1, places.clamp(0, logits.size(1) - 1)[:, None])[:, 0].masked_fill(~is_here, lowest)
    best = torch.stack([logits.max(1).values, of_label])
    if group.size() > 1:
        dist.all_reduce(best, dist.ReduceOp.MAX, group=group)
    return best[1] >= best[0]
