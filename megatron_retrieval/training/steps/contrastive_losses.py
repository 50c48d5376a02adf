"""The contrastive losses that `--contrastive-loss` chooses from, one row each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from megatron_retrieval.config.checks import Checked, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from megatron_retrieval.config.choices import OneOf
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.objectives.contrastive import (
    PositivesLoss,
    QuestionLosses,
    contrastive_pairs,
    negative_log_likelihood,
    online_contrastive_pairs,
)
from megatron_retrieval.objectives.distillation import margin_errors, teacher_divergence
from megatron_retrieval.training.steps.scoring import ScoreScalingConfig
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
            teacher: the question's own passages, [n, N + H], together with the teacher's scores of them in the place of
            `positives`, see `both_of_counted`.
            guided: all passages, questions and positives of the global batch, without those that a guide takes for
            relevant.
        is_softened: its value is times the temperature squared, so that gradients keep their size.
    """

    name: str
    about: str
    question_losses: QuestionLosses
    over: Literal["batch", "pairs", "hard pairs", "guided", "teacher"] = "batch"
    is_softened: bool = False


CONTRASTIVE_LOSSES: Registry[ContrastiveLoss] = Registry("contrastive loss")


@dataclass(kw_only=True, frozen=True)
class ContrastiveLossConfig(ScoreScalingConfig, Checked):
    """A contrastive loss."""

    contrastive_loss: Annotated[str, OneOf(CONTRASTIVE_LOSSES)] = "nll"
    """Loss of a question, given the scores of passages of the global batch."""
    positives_loss: PositivesLoss = "mean"
    """Of several positives (--num-positives). mean: the mean of their losses, each among the negatives only. log-sum:
    the loss of their summed likelihood."""
    teacher_temperature: PositiveFloat = 1.0
    """margin-mse, kl: divide the teacher's scores by this."""
    label_weight: NonNegativeFloat = 0.0
    """margin-mse, kl: add so many times the loss of nll, so that labels tell a question's positive from the passages
    of the whole batch, which the teacher has not seen."""
    guide: Path | None = field(default=None, metadata=INPUT)
    """gist: checkpoint of a dual encoder with the same vocabulary, which says what is no negative."""
    matryoshka_dims: tuple[PositiveInt, ...] | None = None
    """Sizes of prefixes of the vectors that learn as the whole vectors do, so that embeddings can be cut to them
    (--embedding-size)."""
    matryoshka_weights: tuple[NonNegativeFloat, ...] | None = None
    """Weights of their losses, one each; default: 1. That of the whole vectors is 1 unless they are among the sizes."""

    memory_batches: NonNegativeInt = 0
    """Passages of so many batches before are negatives too, by the vectors that they had then (cross-batch memory), so
    that small batches have many negatives. For losses over all passages of the batch."""
    memory_start: NonNegativeInt = 0
    """Steps after which --memory-batches are used, when vectors no longer change fast."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_weight and not self.is_taught:
            raise ConfigError(
                f"--label-weight: --contrastive-loss {self.contrastive_loss} learns from labels anyway; it is for "
                "margin-mse and kl."
            )
        if self.memory_batches and CONTRASTIVE_LOSSES[self.contrastive_loss].over != "batch":
            raise ConfigError(
                f"--memory-batches: --contrastive-loss {self.contrastive_loss} does not learn from all passages of a "
                "batch, hence from no others."
            )

    @property
    def is_taught(self) -> bool:
        """It learns from a teacher's scores."""
        return CONTRASTIVE_LOSSES[self.contrastive_loss].over == "teacher"

    def prefix_weights(self, dimension: int) -> dict[int, float]:
        """The weight of the loss of every size, whole vectors included (Kusupati et al. 2022, arXiv 2205.13147, eq. 1).

        Raises:
            ConfigError: a size is above the vectors', or sizes and weights are not as many.
        """
        sizes = self.matryoshka_dims or ()
        weights = self.matryoshka_weights or (1.0,) * len(sizes)
        if len(weights) != len(sizes):
            raise ConfigError(f"--matryoshka-weights: {len(weights)} weights of {len(sizes)} sizes.")
        if any(size > dimension for size in sizes):
            raise ConfigError(f"--matryoshka-dims {max(sizes)}: vectors have {dimension} numbers only.")
        return {dimension: 1.0, **dict(zip(sizes, weights, strict=True))}


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
CONTRASTIVE_LOSSES.add(
    ContrastiveLoss(
        "margin-mse",
        "squared errors of the positive's margins above the question's other passages, against those of a teacher's "
        "scores in --train-data (MarginMSE)",
        margin_errors,
        over="teacher",
    )
)
CONTRASTIVE_LOSSES.add(
    ContrastiveLoss(
        "kl",
        "divergence from the distribution over the question's passages that a teacher's scores in --train-data give",
        teacher_divergence,
        over="teacher",
        is_softened=True,
    )
)
