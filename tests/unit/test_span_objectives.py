"""Losses over spans by hand: scores (ln 3, 0); the first passage's spans have the logits 1, which is the answer, and 0,
the second's 2, 0, which is the answer, and 0."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron_retrieval.objectives.end_to_end import individual_topk
from megatron_retrieval.objectives.extractive import global_spans, span_log_sums
from megatron_retrieval.types.extractive import PairLogits, SpanLogits

REAL = torch.ones(1, 2, dtype=torch.bool)


def _sums() -> tuple[Tensor, Tensor]:
    """Of both passages: spans of one token, in a text of three columns and of two."""
    logits = PairLogits(torch.tensor([[1.0, 0.0, 9.0], [2.0, 0.0, 0.0]])[:, :, None])
    is_text = torch.tensor([[True, True, False], [True, True, True]])
    correct, total = span_log_sums(logits, is_text, torch.tensor([[[0, 0], [-1, -1]], [[1, 1], [-1, -1]]]))
    return correct[None], total[None]


def test_spans_compete_over_all_passages_or_within_one() -> None:
    scores = torch.tensor([[math.log(3), 0.0]])
    correct, total = _sums()
    assert global_spans(scores, REAL, correct, total, 1).loss.item() == pytest.approx(0.808281, abs=1e-6)
    within = individual_topk(scores, REAL, correct - total, 1)
    assert within.loss.item() == pytest.approx(0.553523, abs=1e-6)


def test_a_question_without_a_correct_span_adds_nothing_and_no_nan() -> None:
    scores = torch.zeros(2, 2).requires_grad_()
    correct = torch.tensor([[-torch.inf, -torch.inf], [0.0, -torch.inf]]).requires_grad_()
    total = torch.tensor([[1.0, 1.0], [1.0, 2.0]]).requires_grad_()
    found = global_spans(scores, torch.tensor([[True, True], [True, False]]), correct, total, 2)
    assert found.loss.item() == pytest.approx(0.5), "fillers do not compete"
    assert found.metrics["num_unread_questions"].part.item() == 1
    found.loss.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert not scores.grad[0].any()


def test_sums_over_spans_are_those_of_all_of_them_one_by_one() -> None:
    """Spans of up to two tokens in texts of some columns; one occurrence is too long for the head and no span."""
    random = torch.Generator().manual_seed(0)
    is_text = torch.tensor([[False, True, True, True, False], [False, False, False, True, True]])
    spans = torch.tensor([[[1, 2], [3, 3], [1, 3]], [[3, 4], [-1, -1], [-1, -1]]])
    pairs = torch.randn(2, 5, 2, generator=random)
    starts, ends = torch.randn(2, 2, 5, generator=random)
    for logits in (PairLogits(pairs), SpanLogits(starts, ends, torch.zeros(2))):
        correct, total = span_log_sums(logits, is_text, spans)
        for row in range(2):
            columns = is_text[row].nonzero()[:, 0].tolist()
            if isinstance(logits, PairLogits):
                own = {(s, s + w): pairs[row, s, w] for s in columns for w in range(2) if s + w in columns}
            else:
                own = {(s, e): starts[row, s] + ends[row, e] for s in columns for e in columns}
            wanted = [own[s, e] for s, e in spans[row].tolist() if (s, e) in own]
            torch.testing.assert_close(correct[row], torch.stack(wanted).logsumexp(0))
            torch.testing.assert_close(total[row], torch.stack(list(own.values())).logsumexp(0))
