"""The contrastive loss of dual encoders, over the negatives of the global batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_retrieval.types.losses import LossOutput

#: of accuracy, beside the first place
DEPTHS = (5, 20)


def contrastive_loss(
    queries: Tensor,
    passages: Tensor,
    positives: Tensor,
    excluded: Tensor,
    is_real: Tensor,
    num_questions: int,
    temperature: float = 1.0,
) -> LossOutput:
    """Negative log-likelihood of each question's positive among all passages of the global batch.

        loss = -1/B * sum_i log( exp(s(q_i, z_i+) / t) / sum_j exp(s(q_i, z_j) / t) ),   s(q, z) = q . z

    (DPR, arXiv 2004.04906, eq. 2, in-batch; with t = sqrt(D), the score scaling of arXiv 2101.00408, section 2.1.)

    Args:
        queries: [n, D], this rank's questions.
        passages: [P, D], the passages of the global batch.
        positives: [n] int64, the column of each question's positive.
        excluded: [n, P] bool, passages that are no candidates for the question; never its positive.
        is_real: [n] bool, False for fillers, which count nothing.
        num_questions: B, real questions in the global batch.
        temperature: t.

    Returns:
        This rank's part of the loss and of the metrics: summed over ranks they are means over the global batch.
        `accuracy`: the positive scores highest. `accuracy@k`: it is among the k highest. `positive_rank`: candidates
        that score above the positive, plus one.
    """
    scores = (queries @ passages.t() / temperature).masked_fill(excluded, float("-inf"))
    losses = F.cross_entropy(scores, positives, reduction="none")
    share = is_real / num_questions
    with torch.no_grad():
        rank = 1 + (scores > scores.gather(1, positives[:, None])).sum(1)
        metrics = {"accuracy": ((rank == 1) * share).sum(), "positive_rank": (rank * share).sum()}
        metrics |= {f"accuracy@{depth}": ((rank <= depth) * share).sum() for depth in DEPTHS}
    return LossOutput((losses * share).sum(), metrics)
