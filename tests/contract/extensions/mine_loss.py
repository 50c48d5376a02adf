"""A contrastive loss of one's own: label smoothing, written outside of the package."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_retrieval.training.steps.contrastive_losses import CONTRASTIVE_LOSSES, ContrastiveLoss

SMOOTHING = 0.1


def smoothed(scores: Tensor, positives: Tensor) -> Tensor:
    """[n] cross-entropies with (1 - 0.1) on the positive and 0.1 spread over all candidates; see `QuestionLosses`."""
    is_candidate = scores != -torch.inf
    log_likelihoods = scores.log_softmax(1).masked_fill(~is_candidate, 0)
    spread = log_likelihoods.sum(1) / is_candidate.sum(1)
    return -(1 - SMOOTHING) * log_likelihoods.gather(1, positives[:, None])[:, 0] - SMOOTHING * spread


CONTRASTIVE_LOSSES.add(ContrastiveLoss("mine", "cross-entropy with a tenth spread over all candidates", smoothed))
