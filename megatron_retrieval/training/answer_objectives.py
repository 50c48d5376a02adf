"""The objectives of end-to-end training, each with the passes of the reader that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.models.t5 import shift_right
from megatron_retrieval.objectives.end_to_end import (
    distillation,
    emdr2,
    individual_topk,
    joint_topk,
    log_priors,
    prior_entropy,
    rag_token,
)
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy
from megatron_retrieval.types import LossOutput, TokenBatch

ObjectiveName = Literal["individual-topk", "joint-topk", "rag-token", "fid", "emdr2", "distillation"]


@dataclass(frozen=True)
class Reading:
    """A reader, with n questions, K passages for each and their answers before it.

    Attributes:
        texts: n * K rows; those of a question stand together.
        is_real: [n, K] bool, False for fillers.
        labels: [n, L] int64, the answers with their end tokens, -1 behind them.
    """

    reader: FusionReader
    texts: TokenBatch
    is_real: Tensor
    labels: Tensor

    @property
    def is_token(self) -> Tensor:
        """[n, L] bool, False behind the answers."""
        return self.labels >= 0

    def each(self) -> Tensor:
        """[n, K] log p(a | q, z) of every passage for itself; -inf for fillers."""
        return self.reader.score_each(self.texts, self.is_real, self.labels)

    def each_token(self) -> Tensor:
        """[n, K, L] log p(a_l | a_1 .. a_(l-1), q, z) of every passage for itself."""
        return self.reader.score_tokens(self.texts, self.is_real, self.labels)

    def together(self, passage_scores: Tensor | None = None) -> Tensor:
        """[M] log-likelihoods of all answers' tokens, with all passages of a question read together."""
        decoder_ids = shift_right(self.labels, self.reader.model.start_id)
        places = self.is_token.flatten().nonzero()[:, 0]
        logits = self.reader(self.texts, self.is_real, decoder_ids, passage_scores, places)
        return -vocab_parallel_cross_entropy(logits, self.labels[self.is_token])


#: `(reading, scores [n, K], score weight [1], questions of the global batch)` to this rank's part of the loss
Objective = Callable[[Reading, Tensor, Tensor, int], LossOutput]


def _individual(reading: Reading, scores: Tensor, _: Tensor, num_questions: int) -> LossOutput:
    return individual_topk(scores, reading.is_real, reading.each(), num_questions)


def _rag_token(reading: Reading, scores: Tensor, _: Tensor, num_questions: int) -> LossOutput:
    return rag_token(scores, reading.is_real, reading.each_token(), reading.is_token, num_questions)


def _joint(reading: Reading, scores: Tensor, score_weight: Tensor, num_questions: int) -> LossOutput:
    priors = log_priors(scores, reading.is_real)
    bias = score_weight * priors.masked_fill(~reading.is_real, 0)
    return _with_entropy(joint_topk(reading.together(bias), num_questions), priors, num_questions)


def _fid(reading: Reading, scores: Tensor, _: Tensor, num_questions: int) -> LossOutput:
    priors = log_priors(scores, reading.is_real)
    return _with_entropy(joint_topk(reading.together(), num_questions), priors, num_questions)


def _emdr2(reading: Reading, scores: Tensor, _: Tensor, num_questions: int) -> LossOutput:
    with torch.no_grad():
        each = reading.each()
    return emdr2(scores, reading.is_real, each, reading.together(), num_questions)


def _distillation(reading: Reading, scores: Tensor, _: Tensor, num_questions: int) -> LossOutput:
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
