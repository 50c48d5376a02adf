"""The contrastive losses of dual encoders, over the negatives of the global batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.metrics import Mean, Metric, Rate

#: k of the metrics accuracy@k
DEPTHS = (5, 20)

#: scores [n, P], -inf where a passage is not a candidate, and positives [n], the column of each question's positive,
#: which is always a candidate -> [n] losses of the questions
QuestionLosses = Callable[[Tensor, Tensor], Tensor]
#: the same for several positives: scores [n, P] and positives [n, N], the columns of each question's positives; the
#: first is always a candidate, others may be fillers, which are none
SeveralPositivesLosses = Callable[[Tensor, Tensor], Tensor]
#: what becomes of several positives of a question
PositivesLoss = Literal["mean", "log-sum"]
#: [n, D] questions and [P, D] passages -> [n, P]
Scores = Callable[[Tensor, Tensor], Tensor]


def inner_products(questions: Tensor, passages: Tensor) -> Tensor:
    """See Scores."""
    return questions @ passages.t()


def negative_log_likelihood(scores: Tensor, positives: Tensor) -> Tensor:
    """Negative log-likelihood of each question's positive among all of its candidates.

        loss_i = -log( exp(s(q_i, z_i+)) / sum_j exp(s(q_i, z_j)) )

    (DPR, arXiv 2004.04906, eq. 2, in-batch.)
    """
    return F.cross_entropy(scores, positives, reduction="none")


def over_positives(question_losses: QuestionLosses, how: PositivesLoss) -> SeveralPositivesLosses:
    """The losses of questions with several positives, none of which is a negative of its own question.

    mean: the mean of the losses that each positive has among the negatives (Karpukhin et al. 2020, arXiv 2004.04906,
    eq. 2, for each of them). log-sum: the loss of one positive with their summed likelihood,

        loss_i = -log( sum_p exp(s_ip) / (sum_p exp(s_ip) + sum_n exp(s_in)) )

    (MIL-NCE, Miech et al. 2020, arXiv 1912.06430, eq. 1).
    """

    def losses(scores: Tensor, positives: Tensor) -> Tensor:
        if positives.size(1) == 1:
            return question_losses(scores, positives[:, 0])
        own, first = scores.gather(1, positives), positives[:, :1]
        negatives = scores.scatter(1, positives, -torch.inf)
        if how == "log-sum":
            return question_losses(negatives.scatter(1, first, own.logsumexp(1, keepdim=True)), first[:, 0])
        is_real = own > -torch.inf
        columns, own = positives.where(is_real, first), own.where(is_real, own[:, :1])
        each = [
            question_losses(negatives.scatter(1, columns[:, [n]], own[:, [n]]), columns[:, n])
            for n in range(positives.size(1))
        ]
        return (torch.stack(each, 1) * is_real).sum(1) / is_real.sum(1)

    return losses


def pair_losses(scores: Tensor, margin: float = 0.5) -> Tensor:
    """Squared distances of a question's positive pair, and what its negative pairs lack of a margin, squared.

        loss_i = d(q_i, z_i+)^2 + sum_j max(0, margin - d(q_i, z_j))^2,   d = 1 - s, s a cosine

    (Hadsell et al. 2006, "Dimensionality reduction by learning an invariant mapping", eq. 4, times 2.)

    Args:
        scores: [n, m], the positive's first; -inf where a pair does not count.

    Returns:
        [n]
    """
    counts = scores > -torch.inf
    distances = 1 - scores.where(counts, 1)
    errors = torch.cat([distances[:, :1], (margin - distances[:, 1:]).clamp(min=0)], 1)
    return errors.where(counts, 0).square().sum(1)


def contrastive_pairs(scores: Tensor, positives: Tensor) -> Tensor:
    """Half of `pair_losses`: its mean over pairs is the contrastive loss of sentence-transformers."""
    return pair_losses(scores) / 2


def online_contrastive_pairs(scores: Tensor, positives: Tensor) -> Tensor:
    """`pair_losses`: its sum over hard pairs is the online contrastive loss of sentence-transformers."""
    return pair_losses(scores)


def hard_pairs(scores: Tensor, furthest_positive: Tensor, nearest_negative: Tensor, num_positives: int = 1) -> Tensor:
    """The scores [n, m] of positive pairs that are further apart than some negative pair, and of negative pairs nearer
    than some positive pair; -inf for the others.

    Args:
        furthest_positive: the greatest distance of a positive pair of the batch.
        nearest_negative: the smallest distance of a negative pair of the batch.
        num_positives: columns of positive pairs; those of negative pairs follow.
    """
    distances = 1 - scores
    positive, negative = distances[:, :num_positives], distances[:, num_positives:]
    is_hard = torch.cat([positive > nearest_negative, negative < furthest_positive], 1)
    return scores.where(is_hard, -torch.inf)


#: DPR's loss, of each positive
LIKELIHOODS_OF_POSITIVES = over_positives(negative_log_likelihood, "mean")


def contrastive_loss(
    queries: Tensor,
    passages: Tensor,
    positives: Tensor,
    excluded: Tensor,
    is_real: Tensor,
    num_questions: int,
    temperature: float = 1.0,
    question_losses: SeveralPositivesLosses = LIKELIHOODS_OF_POSITIVES,
    score: Scores = inner_products,
) -> LossOutput:
    """The mean of the questions' losses, given the scores of the passages of the global batch.

        loss = 1/B * sum_i loss_i(s(q_i, z_1), ..., s(q_i, z_P)),   s(q, z) = q . z / t

    (With t = sqrt(D), the score scaling of arXiv 2101.00408, section 2.1.)

    Args:
        queries: [n, D], this rank's questions.
        passages: [P, D], the passages of the global batch.
        positives: [n, N] int64, the columns of each question's positives; excluded ones are fillers.
        excluded: [n, P] bool, passages that are not candidates for the question; never its first positive.
        is_real: [n] bool, False for fillers, which add nothing.
        num_questions: B, real questions in the global batch.
        temperature: t.
        score: s(q, z) * t.

    Returns:
        This rank's part of the loss and of the metrics: summed over ranks they are means over the global batch.
        `accuracy`: a positive scores highest. `accuracy@k`: one is among the k highest. `positive_rank`: one plus the
        number of passages that score above the best positive.
    """
    scores = (score(queries, passages) / temperature).masked_fill(excluded, float("-inf"))
    losses = question_losses(scores, positives)
    share = is_real / num_questions
    with torch.no_grad():
        rank = 1 + (scores > scores.gather(1, positives).amax(1, keepdim=True)).sum(1)
        metrics: dict[str, Metric] = {
            "accuracy": Rate(((rank == 1) * share).sum(), num_questions),
            "positive_rank": Mean((rank * share).sum(), num_questions),
        }
        for depth in DEPTHS:
            metrics[f"accuracy@{depth}"] = Rate(((rank <= depth) * share).sum(), num_questions)
    return LossOutput((losses * share).sum(), metrics)
