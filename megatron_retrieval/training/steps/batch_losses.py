"""How a contrastive loss sees a batch: all its passages, labelled pairs, or the candidates that a guide leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.objectives.contrastive import (
    QuestionLosses,
    SeveralPositivesLosses,
    hard_pairs,
    negative_log_likelihood,
    over_positives,
)
from megatron_retrieval.objectives.distillation import both_of_counted
from megatron_retrieval.parallel.collectives import add_up, gather_rows
from megatron_retrieval.training.steps.batch_vectors import BatchVectors
from megatron_retrieval.training.steps.contrastive_losses import ContrastiveLoss, ContrastiveLossConfig
from megatron_retrieval.types.contrastive import ContrastiveBatch
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.metrics import Mean, Metric, Metrics, add_metrics

#: scores that stand in memory at once, with their mask and their gradient about five times as many numbers
MOST_SCORES = 1 << 19
#: the losses of a block of the rank's questions, given their scores
LossesOfRows = Callable[[slice], SeveralPositivesLosses]


def row_blocks(num_questions: int, num_passages: int) -> list[slice]:
    """Blocks of questions with a bounded number of scores each."""
    size = max(1, MOST_SCORES // num_passages)
    return [slice(start, start + size) for start in range(0, num_questions, size)]


def losses_of_rows(
    loss: ContrastiveLoss,
    vectors: BatchVectors,
    guide: BatchVectors | None,
    batch: ContrastiveBatch,
    config: ContrastiveLossConfig,
    *,
    divisor: float,
    dp_group: dist.ProcessGroup,
    blocks: list[slice],
) -> LossesOfRows:
    """What computes the losses of each block of the rank's questions.

    Args:
        guide: of guided losses.
        divisor: of scores.
        blocks: of this rank's questions, see `row_blocks`.

    Raises:
        ConfigError: there are no negative pairs, or the data has no teacher's scores.
    """
    if loss.over in ("pairs", "hard pairs"):
        return _Pairs.of(loss, vectors, batch, divisor, dp_group, blocks).losses
    if loss.over == "guided":
        assert guide is not None, "a guided loss needs a guide"
        is_real = gather_rows(batch.question_is_real, dp_group)
        guided = _Guided(loss, vectors, guide, is_real, divisor, dp_group.rank())
        return lambda rows: over_positives(guided.losses(rows), config.positives_loss)
    if loss.over == "teacher":
        columns, teacher = batch.own_columns(dp_group.rank()), _teacher_of(batch, loss) / config.teacher_temperature
        if columns.size(1) == 1:
            raise ConfigError(
                f"--contrastive-loss {loss.name} compares the passages of a question, and each has one: give "
                "--num-hard-negatives above 0."
            )
        assert config.temperature is not None, "see ScoreScalingConfig.over"
        labelled = over_positives(negative_log_likelihood, config.positives_loss)
        return _Taught(loss, columns, teacher, config.temperature, labelled, config.label_weight).losses
    return lambda rows: over_positives(loss.question_losses, config.positives_loss)


def _teacher_of(batch: ContrastiveBatch, loss: ContrastiveLoss) -> Tensor:
    if batch.teacher is None:
        raise ConfigError(
            f"--contrastive-loss {loss.name} learns from a teacher, and the data has no scores of one: "
            "megatron-retrieval score writes those of a cross-encoder into it."
        )
    return batch.teacher


@dataclass(frozen=True)
class _Taught:
    """A question's own passages beside the scores that a teacher gave them, and labels among all passages.

    Attributes:
        columns: [n, N + H] int64 of passages.
        teacher: [n, N + H], NaN where there is no score.
        labelled: the loss that counts `label_weight` times beside the teacher's.
    """

    loss: ContrastiveLoss
    columns: Tensor
    teacher: Tensor
    temperature: float
    labelled: SeveralPositivesLosses
    label_weight: float

    def losses(self, rows: slice) -> SeveralPositivesLosses:
        """See LossesOfRows."""

        def losses(scores: Tensor, positives: Tensor) -> Tensor:
            own = scores.gather(1, self.columns[rows])
            values = self.loss.question_losses(*both_of_counted(own, self.teacher[rows], own > -torch.inf))
            if self.label_weight:
                values = values + self.label_weight * self.labelled(scores, positives)
            return values * self.temperature**2 if self.loss.is_softened else values

        return losses


@dataclass(frozen=True)
class _Pairs:
    """A question with each of its positives, and with each of its own hard negatives.

    Attributes:
        columns: [n, N + H] int64 of passages, the positives first.
        factor: of a question's sum, so that the mean over questions is the mean over pairs, or the sum.
        hardest: the distance of the furthest positive pair and of the nearest negative pair of the global batch, beyond
            which pairs count; None: all do.
    """

    loss: ContrastiveLoss
    columns: Tensor
    factor: Tensor
    hardest: tuple[Tensor, Tensor] | None

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        loss: ContrastiveLoss,
        vectors: BatchVectors,
        batch: ContrastiveBatch,
        divisor: float,
        dp_group: dist.ProcessGroup,
        blocks: list[slice],
    ) -> _Pairs:
        """The pairs of all ranks have their share in the number and in the hardest of them."""
        columns, num_positives = batch.own_columns(dp_group.rank()), batch.num_positives
        stride = columns.size(1)
        if stride == num_positives:
            raise ConfigError(
                f"--contrastive-loss {loss.name} learns from labelled pairs: give data with hard negatives and "
                "--num-hard-negatives above 0."
            )
        excluded = torch.cat([batch.excluded[rows].gather(1, columns[rows]) for rows in blocks])
        is_pair = ~excluded & batch.question_is_real[:, None]
        distances = 1 - torch.einsum("nd,nhd->nh", vectors.queries, vectors.passages[columns]) / divisor
        num_pairs = is_pair.sum().to(distances.dtype)
        is_positive = torch.arange(stride, device=columns.device) < num_positives
        positive = distances.where(is_pair & is_positive, -torch.inf).amax()
        negative = distances.where(is_pair & ~is_positive, torch.inf)
        extremes = torch.stack([positive, -negative.amin()])
        add_up(num_pairs, dp_group)
        if dp_group.size() > 1:
            dist.all_reduce(extremes, dist.ReduceOp.MAX, group=dp_group)
        if loss.over == "hard pairs":
            return cls(loss, columns, num_pairs.new_tensor(batch.num_questions), (extremes[0], -extremes[1]))
        return cls(loss, columns, batch.num_questions / num_pairs, None)

    def losses(self, rows: slice) -> SeveralPositivesLosses:
        """See LossesOfRows."""

        def losses(scores: Tensor, positives: Tensor) -> Tensor:
            own, first = scores.gather(1, self.columns[rows]), torch.zeros_like(positives[:, 0])
            if self.hardest is not None:
                own = hard_pairs(own, *self.hardest, num_positives=positives.size(1))
            further, rest = own[:, 1 : positives.size(1)], own[:, positives.size(1) :]
            total = self.loss.question_losses(torch.cat([own[:, :1], rest], 1), first)
            for column in further.split(1, 1):
                total = total + self.loss.question_losses(column, first)
            return self.factor * total

        return losses


@dataclass(frozen=True)
class _Guided:
    """Passages, other questions and other positives, without those that a guide finds nearer than the positive is to
    its question (GISTEmbed, Solatorio 2024, arXiv 2402.16829).

    Attributes:
        is_real: [W * n] bool of all ranks' questions.
    """

    loss: ContrastiveLoss
    vectors: BatchVectors
    guide: BatchVectors
    is_real: Tensor
    divisor: float
    dp_rank: int

    def losses(self, rows: slice) -> QuestionLosses:
        """See LossesOfRows."""
        num_questions = len(self.vectors.queries)
        columns_of_positives = torch.arange(0, len(self.guide.passages), self._stride, device=self.is_real.device)
        own = torch.arange(num_questions, device=self.is_real.device)[rows, None] + self.dp_rank * num_questions
        left_out = ~self.is_real | (own == torch.arange(len(self.is_real), device=self.is_real.device))

        def losses(scores: Tensor, positives: Tensor) -> Tensor:
            similar = self.guide.queries[rows] @ self.guide.passages.t()
            threshold = similar.gather(1, positives[:, None])
            is_nearer = (similar > threshold).scatter(1, positives[:, None], False)
            parts = [scores.masked_fill(is_nearer, -torch.inf)]
            for mine, others, guide_mine, guide_others in (
                (
                    self.vectors.queries[rows],
                    self.vectors.all_queries,
                    self.guide.queries[rows],
                    self.guide.all_queries,
                ),
                (
                    self.vectors.passages[positives],
                    self.vectors.passages[columns_of_positives],
                    self.guide.passages[positives],
                    self.guide.passages[columns_of_positives],
                ),
            ):
                is_out = left_out | (guide_mine @ guide_others.t() > threshold)
                parts.append((mine @ others.t() / self.divisor).masked_fill(is_out, -torch.inf))
            return self.loss.question_losses(torch.cat(parts, 1), positives)

        return losses

    @property
    def _stride(self) -> int:
        return len(self.guide.passages) // len(self.is_real)


def sum_of_blocks(outputs: Sequence[LossOutput], batch: ContrastiveBatch) -> Metrics:
    """The metrics of a batch, `loss` among them."""
    sums: dict[str, Metric] = {}
    for output in outputs:
        add_metrics(sums, {**output.metrics, "loss": Mean(output.loss, batch.num_questions)})
    return sums
