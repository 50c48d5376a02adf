"""An end-to-end objective from outside of the package: Individual Top-k with a prior twice as sharp."""

from __future__ import annotations

from torch import Tensor

from megatron_retrieval.objectives.end_to_end import individual_topk
from megatron_retrieval.training.steps.end_to_end_objectives import OBJECTIVES
from megatron_retrieval.training.steps.objective import Objective, ObjectiveConfig
from megatron_retrieval.training.steps.readings import Reading
from megatron_retrieval.types.losses import LossOutput


def _sharpened(
    reading: Reading, scores: Tensor, _: Tensor, num_questions: int, settings: ObjectiveConfig
) -> LossOutput:
    return individual_topk(2 * scores, reading.is_real, reading.each(), num_questions)


OBJECTIVES.add(
    Objective(
        name="mine",
        about="reader: each passage for itself; retriever: as in individual-topk, with scores counted twice",
        loss=_sharpened,
        needs=frozenset({"each"}),
        score_use="marginal",
    )
)
