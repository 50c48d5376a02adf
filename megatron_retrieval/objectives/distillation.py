"""Losses that teach a model a teacher's scores of a question's own passages; dual encoders and cross-encoders."""

from __future__ import annotations

import torch
from torch import Tensor


def both_of_counted(scores: Tensor, teacher: Tensor, is_real: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and the teacher's, -inf where a passage does not count: a filler, or one without the teacher's score.

    A question without the teacher's score of its first passage has no other passage that counts; its losses are 0.

    Args:
        scores: [n, S] float32, of S passages of a question, its first positive first.
        teacher: [n, S] float32, NaN where the teacher gave no score.
        is_real: [n, S] bool.
    """
    counts = is_real & ~teacher.isnan()
    counts = counts & counts[:, :1]
    counts[:, 0] = True
    return scores.where(counts, -torch.inf), teacher.nan_to_num().where(counts, -torch.inf)


def margin_errors(scores: Tensor, teacher: Tensor) -> Tensor:
    """Squared errors of the first passage's margin above each other passage, their mean.

        loss_i = mean_j ( (s_i0 - s_ij) - (t_i0 - t_ij) )^2

    (MarginMSE, Hofstätter et al. 2020, arXiv 2010.02666, equation 1.)

    Args:
        scores: [n, S], and
        teacher: [n, S], see `both_of_counted`.

    Returns:
        [n], 0 where no other passage counts.
    """
    counts = scores[:, 1:] > -torch.inf
    own, theirs = (of[:, :1] - of[:, 1:].where(counts, 0) for of in (scores, teacher))
    errors = (own - theirs).square().where(counts, 0)
    return errors.sum(1) / counts.sum(1).clamp(min=1)


def teacher_divergence(scores: Tensor, teacher: Tensor) -> Tensor:
    """Divergence of the model's distribution over the passages from the teacher's.

        loss_i = KL( softmax(t_i) || softmax(s_i) )

    (Hinton et al. 2015, arXiv 1503.02531, section 2; for arguments see `margin_errors`.)
    """
    counts = scores > -torch.inf
    own, theirs = scores.log_softmax(1).where(counts, 0), teacher.log_softmax(1)
    return (theirs.exp() * (theirs.where(counts, 0) - own)).sum(1)
