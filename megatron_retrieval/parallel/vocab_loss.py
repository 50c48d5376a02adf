"""Cross-entropy over a vocabulary that is sharded over tensor-parallel ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import mappings
from torch import Tensor

from megatron_retrieval.parallel.collectives import add_up


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


def vocab_parallel_log_softmax(logits: Tensor, group: dist.ProcessGroup) -> Tensor:
    """log softmax over the whole vocabulary, differentiable: [M, V / tensor-parallel size] -> the same, this rank's
    part; the lowest number stays where there is no token."""
    greatest = logits.detach().amax(1)
    if group.size() > 1:
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=group)
    total = mappings.reduce_from_tensor_model_parallel_region((logits - greatest[:, None]).exp().sum(1), group=group)
    # every rank's part has a share in the gradient of the normaliser
    normaliser = copy_to_vocab_ranks(total.log() + greatest, group)
    return torch.where(has_token(logits), logits - normaliser[:, None], logits.detach())


def copy_to_vocab_ranks(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The same values; their gradient is summed over ranks, each of which uses them with its part of the vocabulary."""
    copied: Tensor = mappings.copy_to_tensor_model_parallel_region(values, group=group)
    return copied


def vocab_parallel_mean(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[..., V / tensor-parallel size] -> [...]: the mean over the tokens of the whole vocabulary, differentiable, equal
    on all tensor-parallel ranks."""
    is_token = has_token(values)
    total = mappings.reduce_from_tensor_model_parallel_region(values.where(is_token, 0).sum(-1), group=group)
    count = is_token.sum(-1)
    add_up(count, group)
    return total / count


def vocab_parallel_pick(values: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[M, V / tensor-parallel size] and labels [M] int64 -> [M]: the value of each label, differentiable, equal on all
    tensor-parallel ranks."""
    places = labels - group.rank() * values.size(1)
    is_here = (places >= 0) & (places < values.size(1))
    own = values.gather(1, places.clamp(0, values.size(1) - 1)[:, None])[:, 0].where(is_here, 0)
    picked: Tensor = mappings.reduce_from_tensor_model_parallel_region(own, group=group)
    return picked


def has_token(logits: Tensor) -> Tensor:
    """Where an entry of the vocabulary has a token: logits of the others are the lowest number."""
    return logits > torch.finfo(logits.dtype).min / 2


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
