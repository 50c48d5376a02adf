"""The contrastive losses that `--contrastive-loss` chooses from, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_retrieval.objectives.contrastive import (
    QuestionLosses,
    contrastive_pairs,
    negative_log_likelihood,
    online_contrastive_pairs,
)
from megatron_retrieval.utils.registry import Registry


@dataclass(frozen=True)
class ContrastiveLoss:
    """A loss of dual encoders.

    Attributes:
        name: what `--contrastive-loss` calls it.
        about: what it is, in one clause, for `--help`.
        question_losses: scores [n, P] and positives [n] -> losses [n], see `QuestionLosses`.
        over: what it is given scores of. batch: all passages of the global batch. pairs: a positive of the
            question and its own hard negatives, [n, 1 + H] cosines, -inf where there are fewer; further positives
            follow by themselves, and the batch's loss is a mean over pairs.
            hard pairs: those on the wrong side of the hardest pair of the other kind; the batch's loss is a sum.
            guided: all passages, questions and positives of the global batch, without those that a guide takes for
            relevant.
    """

    name: str
    about: str
    question_losses: QuestionLosses
    over: Literal["batch", "pairs", "hard pairs", "guided"] = "batch"


CONTRASTIVE_LOSSES: Registry[ContrastiveLoss] = Registry("contrastive loss")

CONTRASTIVE_LOSSES.add(
    ContrastiveLoss(
        "nll",
        "negative log-likelihood of the positive among all passages of the global batch (DPR; with cosines and "
        "--temperature 0.05 multiple negatives ranking, with --gradient-caching the cached one)",
        negative_log_likelihood,
    )
)
CONTRASTIVE_LOSSES.add(
    ContrastiveLoss(
        "gist",
        "the same among questions and positives as well, without those that --guide finds nearer than the positive "
        "(GISTEmbed)",
        negative_log_likelihood,
        over="guided",
    )
)
CONTRASTIVE_LOSSES.add(
    ContrastiveLoss(
        "contrastive",
        "squared distances of positives, and of hard negatives what they lack of the margin 0.5; the mean over pairs",
        contrastive_pairs,
        over="pairs",
    )
)
CONTRASTIVE_LOSSES.add(
    ContrastiveLoss(
        "online-contrastive",
        "the same, of positives beyond the nearest negative and negatives within the furthest positive; the sum",
        online_contrastive_pairs,
        over="hard pairs",
    )
)
