"""The objectives of end-to-end training, one row each: a pure function of tensors, fed with the passes of a reader."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.objectives.end_to_end import (
    distillation,
    emdr2,
    individual_topk,
    joint_topk,
    log_priors,
    prior_entropy,
    rag_token,
)
from megatron_retrieval.objectives.extractive import global_spans
from megatron_retrieval.objectives.masked_tokens import masked_tokens
from megatron_retrieval.training.steps.extractive_readings import ExtractiveReading
from megatron_retrieval.training.steps.masked_readings import MaskedReading
from megatron_retrieval.training.steps.objective import Objective, ObjectiveConfig
from megatron_retrieval.training.steps.readings import Pass, PointingReading, Reading, WritingReading
from megatron_retrieval.training.steps.step import evaluation_mode
from megatron_retrieval.types.losses import LossOutput
from megatron_retrieval.utils.registry import Registry

OBJECTIVES: Registry[Objective] = Registry("objective")


def require_passes(objective: str, passes: frozenset[Pass], reader: str, settings: ObjectiveConfig) -> None:
    """Refuse an objective that a reader cannot learn by.

    Args:
        passes: that the reader has.
        reader: for the message.

    Raises:
        ConfigError: a pass is missing, there is no such objective, or it has no smoothed labels.
    """
    if settings.label_smoothing and not (OBJECTIVES[objective].smooths and "smoothed" in passes):
        smoothing = [name for name, row in OBJECTIVES.items() if row.smooths]
        raise ConfigError(
            f"--label-smoothing {settings.label_smoothing:g} is for --objective {' or '.join(smoothing)} and readers "
            f"that write, not for --objective {objective} of {reader}: leave it out."
        )
    if missing := OBJECTIVES[objective].needs - passes:
        possible = [name for name, row in OBJECTIVES.items() if row.needs <= passes]
        raise ConfigError(
            f"--objective {objective} is not for {reader}, which has no pass {' or '.join(sorted(missing))!r}; "
            f"choose {' or '.join(possible)}."
        )


def _individual(
    reading: WritingReading, scores: Tensor, _: Tensor, num_questions: int, settings: ObjectiveConfig
) -> LossOutput:
    if not settings.label_smoothing:
        return individual_topk(scores, reading.is_real, reading.each(), num_questions)
    tokens, uniform = (part.masked_fill(~reading.is_token[:, None], 0).sum(2) for part in reading.smoothed())
    return individual_topk(scores, reading.is_real, tokens, num_questions, uniform, settings.label_smoothing)


OBJECTIVES.add(
    Objective(
        name="individual-topk",
        about="reader: each passage for itself; retriever: the sum over passages of p(z | q) p(a | q, z)",
        loss=_individual,
        needs=frozenset({"each"}),
        smooths=True,
        score_use="marginal",
    )
)


def _rag_token(
    reading: WritingReading, scores: Tensor, _: Tensor, num_questions: int, settings: ObjectiveConfig
) -> LossOutput:
    is_real, is_token = reading.is_real, reading.is_token
    if not settings.label_smoothing:
        return rag_token(scores, is_real, reading.each_token(), is_token, num_questions)
    tokens, uniform = reading.smoothed(log_priors(scores, is_real))
    return rag_token(scores, is_real, tokens, is_token, num_questions, uniform, settings.label_smoothing)


OBJECTIVES.add(
    Objective(
        name="rag-token",
        about="reader: each passage for itself, token by token; retriever: the sum over passages, token by token",
        loss=_rag_token,
        needs=frozenset({"each_token"}),
        smooths=True,
        score_use="token",
    )
)


def _realm(
    reading: MaskedReading, scores: Tensor, _: Tensor, num_questions: int, settings: ObjectiveConfig
) -> LossOutput:
    assert reading.num_tokens is not None, "nobody has counted the tokens"
    likelihoods, per = reading.each_mask(), settings.mask_marginal
    return masked_tokens(
        scores, reading.is_real, reading.is_null, likelihoods, reading.is_token, num_questions, reading.num_tokens, per
    )


OBJECTIVES.add(
    Objective(
        name="realm",
        about="reader: masked tokens, each passage for itself; retriever: the sum over passages of their likelihood",
        loss=_realm,
        needs=frozenset({"each_mask"}),
        counts_tokens=True,
        score_use="marginal",
    )
)


def _orqa(
    reading: ExtractiveReading, scores: Tensor, _: Tensor, num_questions: int, settings: ObjectiveConfig
) -> LossOutput:
    if settings.span_normalization == "passage":
        return individual_topk(scores, reading.is_real, reading.each(), num_questions)
    return global_spans(scores, reading.is_real, *reading.span_sums(), num_questions)


OBJECTIVES.add(
    Objective(
        name="orqa",
        about="reader: spans of all passages at once; retriever: its scores, as part of the spans' logits",
        loss=_orqa,
        needs=frozenset({"span_sums"}),
        score_use=lambda settings: "logit" if settings.span_normalization == "global" else "marginal",
    )
)


def _joint(
    reading: WritingReading, scores: Tensor, score_weight: Tensor, num_questions: int, settings: ObjectiveConfig
) -> LossOutput:
    priors = log_priors(scores, reading.is_real)
    bias = score_weight * priors.masked_fill(~reading.is_real, 0)
    return _with_entropy(joint_topk(reading.together(bias), num_questions), priors, num_questions)


OBJECTIVES.add(
    Objective(
        name="joint-topk",
        about="reader: all passages together, log p(z | q) in its attention; retriever: the same attention",
        loss=_joint,
        needs=frozenset({"together", "weighed"}),
        score_use="bias",
    )
)


def _fid(
    reading: PointingReading | WritingReading, scores: Tensor, _: Tensor, num_questions: int, settings: ObjectiveConfig
) -> LossOutput:
    priors = log_priors(scores, reading.is_real)
    return _with_entropy(joint_topk(reading.together(), num_questions), priors, num_questions)


OBJECTIVES.add(
    Objective(
        name="fid",
        about="reader: all passages together; retriever: nothing, it keeps its weights",
        loss=_fid,
        needs=frozenset({"together"}),
        trains_retriever=False,
        score_use="none",
    )
)


@torch.no_grad()
def _held_fixed(reading: Reading, *, drops: bool) -> Tensor:
    """[n, K] log p(a | q, z) by the reader as a teacher: without gradient, in evaluation mode unless it `drops`."""
    with contextlib.nullcontext() if drops else evaluation_mode(reading.module):
        return reading.each()


def _emdr2(
    reading: PointingReading | WritingReading, scores: Tensor, _: Tensor, num_questions: int, settings: ObjectiveConfig
) -> LossOutput:
    each = _held_fixed(reading, drops=settings.emdr2_dropout)
    return emdr2(scores, reading.is_real, each, reading.together(), num_questions)


OBJECTIVES.add(
    Objective(
        name="emdr2",
        about="reader: all passages together; retriever: as in individual-topk, with the reader held fixed",
        loss=_emdr2,
        needs=frozenset({"each", "together"}),
        score_use="none",
    )
)


def _distillation(
    reading: PointingReading | WritingReading, scores: Tensor, _: Tensor, num_questions: int, settings: ObjectiveConfig
) -> LossOutput:
    each = _held_fixed(reading, drops=False)
    retriever = distillation(scores, reading.is_real, each, num_questions, settings.distillation_temperature)
    reader = joint_topk(reading.together(), num_questions)
    return LossOutput(reader.loss + retriever.loss, {**retriever.metrics, **reader.metrics})


OBJECTIVES.add(
    Objective(
        name="distillation",
        about="reader: all passages together; retriever: how likely the answer is with each passage",
        loss=_distillation,
        needs=frozenset({"each", "together"}),
        score_use="none",
    )
)


def _holding(
    reading: PointingReading, scores: Tensor, _: Tensor, num_questions: int, settings: ObjectiveConfig
) -> LossOutput:
    holds = reading.holds()
    return individual_topk(scores, reading.is_real, torch.zeros_like(scores).where(holds, -torch.inf), num_questions)


OBJECTIVES.add(
    Objective(
        name="holding-passages",
        about="reader: nothing, it keeps its weights; retriever: the passages that hold the answer (ORQA's early loss)",
        loss=_holding,
        needs=frozenset({"holds"}),
        trains_reader=False,
        score_use="marginal",
    )
)


def _with_entropy(output: LossOutput, priors: Tensor, num_questions: int) -> LossOutput:
    return LossOutput(output.loss, {**output.metrics, "prior_entropy": prior_entropy(priors, num_questions)})
