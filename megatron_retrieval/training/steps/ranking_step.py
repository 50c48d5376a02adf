"""The step of cross-encoders: score the positive passage of a question above its negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveFloat, PositiveInt
from megatron_retrieval.models.cross_encoder import CrossEncoder
from megatron_retrieval.objectives.distillation import both_of_counted, margin_errors, teacher_divergence
from megatron_retrieval.objectives.ranking import binary_loss, listwise_loss, positive_ranks
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.question_step import QuestionStep
from megatron_retrieval.types.extractive import RankingBatch
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.types.metrics import Mean, Rate
from megatron_retrieval.types.tokens import to_device

_LOSSES = {"listwise": listwise_loss, "binary": binary_loss}
_TAUGHT_LOSSES = {"margin-mse": margin_errors, "kl": teacher_divergence}


@dataclass(kw_only=True, frozen=True)
class RankingStepConfig(Checked):
    """The loss of a cross-encoder and how its step is computed."""

    ranking_loss: Literal["listwise", "binary", "margin-mse", "kl"] = "listwise"
    """listwise: the positive among the passages of its question, by one softmax. binary: each passage by itself,
    relevant or not. Of a teacher's scores in --train-data, margin-mse: squared errors of the positive's margins above
    the other passages; kl: divergence from the teacher's distribution over them."""
    teacher_temperature: PositiveFloat = 1.0
    """margin-mse, kl: divide the teacher's scores by this."""
    micro_batch_size: PositiveInt = 4
    """Questions per forward pass, each with all of its passages; memory and speed depend on it, the result does not."""

    @property
    def is_taught(self) -> bool:
        """The loss learns from a teacher's scores."""
        return self.ranking_loss in _TAUGHT_LOSSES


class RankingStep(QuestionStep[RankingBatch]):
    """See QuestionStep; fillers are not computed."""

    reported: ClassVar[dict[str, type[Mean]]] = {"accuracy": Rate, "mrr": Mean}
    model: CrossEncoder

    def __init__(self, model: CrossEncoder, config: RankingStepConfig, topology: ProcessTopology, seed: int) -> None:
        super().__init__(model, topology, seed, config.micro_batch_size)
        self._config = config

    def loss(self, batch: RankingBatch) -> LossOutput:
        """See QuestionStep."""
        device, rows = self.topology.device, batch.is_real.flatten().nonzero()[:, 0]
        is_real = to_device(batch.is_real, device)
        real = self.model(batch.passages.rows(rows).to(device))
        flat = real.new_zeros(is_real.numel()).index_put((to_device(rows, device),), real)
        scores = flat.view_as(is_real)
        ranks, number = positive_ranks(scores.detach(), is_real), batch.num_questions
        loss = self._question_losses(scores, is_real, batch).sum() / number
        first, reciprocal = ((ranks == 1).sum() / number, ranks.reciprocal().sum() / number)
        return LossOutput(loss, {"accuracy": Rate(first, number), "mrr": Mean(reciprocal, number)})

    def _question_losses(self, scores: Tensor, is_real: Tensor, batch: RankingBatch) -> Tensor:
        """[n] losses of scores [n, K]."""
        name = self._config.ranking_loss
        if name in _LOSSES:
            return _LOSSES[name](scores, is_real)
        assert batch.teacher is not None, "see require_teacher"
        teacher = to_device(batch.teacher, scores.device) / self._config.teacher_temperature
        return _TAUGHT_LOSSES[name](*both_of_counted(scores, teacher, is_real))
