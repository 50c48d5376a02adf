"""The contrastive losses that `--contrastive-loss` chooses from, one row each."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_retrieval.objectives.contrastive import QuestionLosses, negative_log_likelihood
from megatron_retrieval.utils.registry import Registry


@dataclass(frozen=True)
class ContrastiveLoss:
    """A loss of dual encoders.

    Attributes:
        name: what `--contrastive-loss` calls it.
        about: what it is, in one clause, for `--help`.
        question_losses: scores [n, P] and positives [n] -> losses [n], see `QuestionLosses`.
    """

    name: str
    about: str
    question_losses: QuestionLosses


CONTRASTIVE_LOSSES: Registry[ContrastiveLoss] = Registry("contrastive loss")

CONTRASTIVE_LOSSES.add(
    ContrastiveLoss(
        "nll",
        "negative log-likelihood of the positive among all passages of the global batch (DPR)",
        negative_log_likelihood,
    )
)
