"""REALM's loss by hand: scores (ln 3, 0); two masked tokens, likely .5 and .2 with the first passage, .1 and .8 with
the second."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_retrieval.objectives.masked_tokens import MaskMarginal, masked_tokens

LIKELIHOODS = torch.tensor([[[0.5, 0.2], [0.1, 0.8]]]).log()
NONE = torch.zeros(1, 2, dtype=torch.bool)


def _found(
    likelihoods: Tensor, is_null: Tensor | None, marginal: MaskMarginal, is_real: Tensor | None = None
) -> tuple[Any, Tensor]:
    """What the loss returns, and the gradient of the scores."""
    scores = torch.tensor([[math.log(3), 0.0]]).requires_grad_()
    is_real = ~NONE if is_real is None else is_real
    is_token = torch.ones(1, likelihoods.size(2), dtype=torch.bool)
    found = masked_tokens(scores, is_real, is_null, likelihoods, is_token, 1, float(likelihoods.size(2)), marginal)
    found.loss.backward()
    assert scores.grad is not None
    return found, scores.grad


def test_masked_tokens_are_marginalised_one_by_one_as_in_the_code_or_together_as_in_the_paper() -> None:
    """The gradients of the two have opposite signs; the mean over two tokens halves one of them."""
    token, of_token = _found(LIKELIHOODS, None, "token")
    assert token.loss.item() == pytest.approx(1.966113 / 2, abs=1e-6)
    assert token.loss.item() == pytest.approx(0.983056, abs=1e-6)
    assert of_token[0, 0].item() == pytest.approx(0.1339 / 2, abs=5e-5)
    span, of_span = _found(LIKELIHOODS, None, "span")
    assert span.loss.item() == pytest.approx(2.353878, abs=1e-6)
    assert of_span[0, 0].item() == pytest.approx(-0.0395, abs=5e-5)
    assert "retrieval_utility" not in token.metrics


@pytest.mark.parametrize("marginal", ["token", "span"])
def test_the_null_passage_alone_is_of_no_use_and_an_informative_one_is(marginal: MaskMarginal) -> None:
    """Exactly 0, without a gradient for the retriever, where no other passage is there; above 0 where the other one
    makes every token likelier."""
    alone, gradient = _found(LIKELIHOODS, torch.tensor([[True, False]]), marginal, torch.tensor([[True, False]]))
    assert alone.metrics["retrieval_utility"].part.item() == 0
    assert not gradient.any()
    informed = LIKELIHOODS.clone()
    informed[0, 0] = math.log(0.9)
    informed[0, 1] = math.log(0.1)
    found, gradient = _found(informed, torch.tensor([[False, True]]), marginal)
    both = {"token": math.log(0.7 / 0.1), "span": math.log((0.75 * 0.81 + 0.25 * 0.01) / 0.01) / 2}
    assert found.metrics["retrieval_utility"].part.item() == pytest.approx(both[marginal], rel=1e-5)
    assert found.metrics["utility_below_0"].part.item() == 0
    assert gradient[0, 0] < 0 < gradient[0, 1], "the informative passage's score rises"
    worse, _ = _found(informed, torch.tensor([[True, False]]), marginal)
    assert worse.metrics["utility_below_0"].part.item() == 1


def test_candidates_have_no_order_and_padding_counts_nothing() -> None:
    for marginal in ("token", "span"):
        wanted, _ = _found(LIKELIHOODS, NONE, marginal)
        scores = torch.tensor([[0.0, 5.0, math.log(3)]])
        likelihoods = torch.stack([LIKELIHOODS[0, 1], torch.tensor([9.0, 9.0]), LIKELIHOODS[0, 0]])[None]
        padded = torch.nn.functional.pad(likelihoods, (0, 1), value=-3.0)
        is_real, is_token = torch.tensor([[True, False, True]]), torch.tensor([[True, True, False]])
        found = masked_tokens(scores, is_real, None, padded, is_token, 1, 2.0, marginal)
        torch.testing.assert_close(found.loss, wanted.loss.detach())
