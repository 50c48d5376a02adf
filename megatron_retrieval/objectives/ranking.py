"""Losses of cross-encoders over the passages of a question, of which the first is its positive."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def listwise_loss(scores: Tensor, is_real: Tensor) -> Tensor:
    """-log softmax of the positive among the passages of its question (Gao et al. 2021, arXiv 2101.08751, equation 2).

    Args:
        scores: [n, K] float32.
        is_real: [n, K] bool, False for fillers; the first is real.

    Returns:
        [n] float32.
    """
    return -scores.masked_fill(~is_real, -torch.inf).log_softmax(1)[:, 0]


def binary_loss(scores: Tensor, is_real: Tensor) -> Tensor:
    """The cross-entropy of relevant or not, the sigmoid of the score, as the mean over the passages of the question
    (Nogueira & Cho 2019, arXiv 1901.04085, equation 1); for arguments see `listwise_loss`."""
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1
    losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="none").masked_fill(~is_real, 0)
    return losses.sum(1) / is_real.sum(1)


def positive_ranks(scores: Tensor, is_real: Tensor) -> Tensor:
    """[n] int64: the place of the positive by score, from 1; behind negatives of the same score."""
    return 1 + (scores.masked_fill(~is_real, -torch.inf)[:, 1:] >= scores[:, :1]).sum(1)
