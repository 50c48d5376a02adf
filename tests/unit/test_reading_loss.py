"""The loss of extractive readers against hand-computed likelihoods, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron_retrieval.objectives.extractive import extractive_loss
from megatron_retrieval.types.extractive import SpanLogits

LN = math.log


def logits(requires_grad: bool = False) -> SpanLogits:
    """Two questions with two passages of four tokens, of which the second and third are text; probabilities of the
    text are powers of two."""
    starts = torch.tensor([[9, LN(3), 0, 9], [1, 2, 3, 4], [9, 0, 0, 9], [4, 3, 2, 1]], dtype=torch.float64)
    ends = torch.tensor([[9, 0, LN(7), 9], [4, 3, 2, 1], [9, LN(1), LN(3), 9], [1, 2, 3, 4]], dtype=torch.float64)
    selection = torch.tensor([LN(4), 0, 0, LN(9)], dtype=torch.float64)
    return SpanLogits(*(values.requires_grad_(requires_grad) for values in (starts, ends, selection)))


IS_TEXT = torch.tensor([[False, True, True, False]] * 4)
ALL_REAL = torch.ones(2, 2, dtype=torch.bool)
# question 0: [1, 1] and [1, 2]; question 1: [2, 2] alone
SPANS = torch.tensor([[[1, 1], [1, 2]], [[2, 2], [-1, -1]]])


def loss(spans: Tensor = SPANS, is_real: Tensor = ALL_REAL, *, marginal: bool = True) -> dict[str, float]:
    output = extractive_loss(logits(), IS_TEXT, is_real, spans, 2, marginal=marginal)
    return {"loss": output.loss.item(), **{name: value.part.item() for name, value in output.metrics.items()}}


def test_marginal_likelihood_of_all_occurrences() -> None:
    first, second = 3 / 4 * 1 / 8 + 3 / 4 * 7 / 8, 1 / 2 * 3 / 4
    expected = -(LN(first) + LN(second)) / 2
    result = loss()
    assert result["span_loss"] == pytest.approx(expected, abs=1e-12)
    assert result["selection_loss"] == pytest.approx(-(LN(4 / 5) + LN(1 / 10)) / 2, abs=1e-12)
    assert result["loss"] == pytest.approx(result["span_loss"] + result["selection_loss"], abs=1e-12)


def test_the_likeliest_occurrence_alone() -> None:
    expected = -(LN(3 / 4 * 7 / 8) + LN(1 / 2 * 3 / 4)) / 2
    assert loss(marginal=False)["span_loss"] == pytest.approx(expected, abs=1e-12)


def test_accuracies() -> None:
    result = loss()
    # question 0: start 1, end 2 is an answer, and its positive is selected; question 1: start is tied at 1, no answer
    assert (result["span_accuracy"], result["selection_accuracy"], result["accuracy"]) == (0.5, 0.5, 0.5)
    other = loss(torch.tensor([[[1, 1], [2, 2]], [[1, 2], [2, 2]]]))
    assert (other["span_accuracy"], other["selection_accuracy"], other["accuracy"]) == (0.5, 0.5, 0)


def test_filler_passages_are_no_candidates() -> None:
    result = loss(is_real=torch.tensor([[True, True], [True, False]]))
    assert result["selection_loss"] == pytest.approx(-LN(4 / 5) / 2, abs=1e-12)
    assert result["selection_accuracy"] == 1


def test_gradients_are_finite_and_stay_inside_the_text_of_positives() -> None:
    values = logits(requires_grad=True)
    arguments = (IS_TEXT, torch.tensor([[True, True], [True, False]]), SPANS, 2)
    extractive_loss(values, *arguments).loss.backward()
    for gradient in (values.starts.grad, values.ends.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert (gradient[:, [0, 3]] == 0).all()
        assert (gradient[1::2] == 0).all()
        assert gradient[2].abs().sum() > 0  # the answers of question 0 end wherever its text has a token
    assert values.selection.grad is not None
    torch.testing.assert_close(values.selection.grad, torch.tensor([-0.1, 0.1, 0, 0], dtype=torch.float64))

    def scalar(*parts: Tensor) -> Tensor:
        return extractive_loss(SpanLogits(*parts), *arguments).loss

    assert torch.autograd.gradcheck(scalar, (values.starts, values.ends, values.selection))
