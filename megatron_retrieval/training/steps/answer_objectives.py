"""The objectives of end-to-end training, each with the passes of the reader that it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from megatron_retrieval.objectives.end_to_end import (
    distillation,
    emdr2,
    individual_topk,
    joint_topk,
    log_priors,
    prior_entropy,
    rag_token,
)
from megatron_retrieval.training.steps.readings import Reading, WritingReading
from megatron_retrieval.types.losses import LossOutput

ObjectiveName = Literal["individual-topk", "joint-topk", "rag-token", "fid", "emdr2", "distillation"]

#: those that need no more of a reader than how likely the answer is with each passage
PASSAGE_OBJECTIVES: tuple[ObjectiveName, ...] = ("individual-topk",)

#: `(reading, scores [n, K], score weight [1], questions of the global batch)` to this rank's part of the loss; the
#: reading is a Reading, or a WritingReading for all but PASSAGE_OBJECTIVES
Objective = Callable[[Any, Tensor, Tensor, int], LossOutput]


def _individual(reading: Reading, scores: Tensor, _: Tensor, num_questions: int) -> LossOutput:
    return individual_topk(scores, reading.is_real, reading.each(), num_questions)


def _rag_token(reading: WritingReading, scores: Tensor, _: Tensor, num_questions: int) -> LossOutput:
    return rag_token(scores, reading.is_real, reading.each_token(), reading.is_token, num_questions)


def _joint(reading: WritingReading, scores: Tensor, score_weight: Tensor, num_questions: int) -> LossOutput:
    priors = log_priors(scores, reading.is_real)
    bias = score_weight * priors.masked_fill(~reading.is_real, 0)
    return _with_entropy(joint_topk(reading.together(bias), num_questions), priors, num_questions)


def _fid(reading: WritingReading, scores: Tensor, _: Tensor, num_questions: int) -> LossOutput:
    priors = log_priors(scores, reading.is_real)
    return _with_entropy(joint_topk(reading.together(), num_questions), priors, num_questions)


def _emdr2(reading: WritingReading, scores: Tensor, _: Tensor, num_questions: int) -> LossOutput:
    with torch.no_grad():
        each = reading.each()
    return emdr2(scores, reading.is_real, each, reading.together(), num_questions)


def _distillation(reading: WritingReading, scores: Tensor, _: Tensor, num_questions: int) -> LossOutput:
    with torch.no_grad():
        each = reading.each()
    retriever = distillation(scores, reading.is_real, each, num_questions)
    reader = joint_topk(reading.together(), num_questions)
    return LossOutput(reader.loss + retriever.loss, {**retriever.metrics, **reader.metrics})


def _with_entropy(output: LossOutput, priors: Tensor, num_questions: int) -> LossOutput:
    return LossOutput(output.loss, {**output.metrics, "prior_entropy": prior_entropy(priors, num_questions)})


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "individual-topk": _individual,
    "joint-topk": _joint,
    "rag-token": _rag_token,
    "fid": _fid,
    "emdr2": _emdr2,
    "distillation": _distillation,
}
