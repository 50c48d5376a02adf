"""The contrastive loss against hand-computed cases in float64."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from megatron_retrieval.objectives.contrastive import contrastive_loss, negative_log_likelihood, over_positives

QUERIES = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
PASSAGES = torch.tensor([[1.0, 1.0], [3.0, 0.0], [0.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
POSITIVES = torch.tensor([[0], [2]])
NONE_EXCLUDED = torch.zeros(2, 4, dtype=torch.bool)
BOTH_REAL = torch.tensor([True, True])


def test_loss_and_metrics_by_hand() -> None:
    """Scores are [1, 3, 0, 1] and [2, 0, 2, -2]; positives are the first and the third."""
    output = contrastive_loss(QUERIES, PASSAGES, POSITIVES, NONE_EXCLUDED, BOTH_REAL, 2)
    first = math.log(math.exp(1) + math.exp(3) + math.exp(0) + math.exp(1)) - 1
    second = math.log(math.exp(2) + math.exp(0) + math.exp(2) + math.exp(-2)) - 2
    assert output.loss.item() == pytest.approx((first + second) / 2, rel=1e-12)
    assert output.metrics["accuracy"].part.item() == 0.5
    assert output.metrics["positive_rank"].part.item() == 1.5


def test_accuracy_within_the_first_places() -> None:
    """The positives of 30 questions rank 1st, 2nd, ... 30th; every passage above is a better one."""
    passages = torch.arange(30, 0, -1, dtype=torch.float64)[:, None]
    queries = torch.ones(30, 1, dtype=torch.float64)
    none, real = torch.zeros(30, 30, dtype=torch.bool), torch.ones(30, dtype=torch.bool)
    metrics = contrastive_loss(queries, passages, torch.arange(30)[:, None], none, real, 30).metrics
    shares = [metrics[name].part.item() for name in ("accuracy", "accuracy@5", "accuracy@20")]
    assert shares == pytest.approx([1 / 30, 5 / 30, 20 / 30], rel=1e-6)
    assert metrics["positive_rank"].part.item() == pytest.approx(15.5, rel=1e-6)


def test_temperature_divides_scores() -> None:
    output = contrastive_loss(QUERIES, PASSAGES, POSITIVES, NONE_EXCLUDED, BOTH_REAL, 2, temperature=math.sqrt(2))
    scaled = contrastive_loss(QUERIES / math.sqrt(2), PASSAGES, POSITIVES, NONE_EXCLUDED, BOTH_REAL, 2)
    assert output.loss.item() == pytest.approx(scaled.loss.item(), rel=1e-12)


def test_excluded_passage_is_no_candidate() -> None:
    excluded = NONE_EXCLUDED.clone()
    excluded[0, 1] = True
    output = contrastive_loss(QUERIES[:1], PASSAGES, POSITIVES[:1], excluded[:1], BOTH_REAL[:1], 1)
    assert output.loss.item() == pytest.approx(math.log(2 * math.exp(1) + 1) - 1, rel=1e-12)
    assert output.metrics["accuracy"].part.item() == 1.0


def test_fillers_count_nothing_and_send_no_gradient() -> None:
    queries = QUERIES.clone().requires_grad_()
    real = torch.tensor([True, False])
    output = contrastive_loss(queries, PASSAGES, POSITIVES, NONE_EXCLUDED, real, 1)
    alone = contrastive_loss(QUERIES[:1], PASSAGES, POSITIVES[:1], NONE_EXCLUDED[:1], real[:1], 1)
    assert output.loss.item() == alone.loss.item()
    output.loss.backward()
    assert queries.grad is not None
    assert queries.grad[0].any()
    assert not queries.grad[1].any()


def test_gradient_is_that_of_the_formula() -> None:
    def loss(queries: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
        return contrastive_loss(queries, passages, POSITIVES, NONE_EXCLUDED, BOTH_REAL, 2, temperature=0.7).loss

    assert torch.autograd.gradcheck(loss, (QUERIES.clone().requires_grad_(), PASSAGES.clone().requires_grad_()))


@pytest.mark.parametrize("how", ["mean", "log-sum"])
def test_positives_are_no_negatives_of_their_own_question(how: Literal["mean", "log-sum"]) -> None:
    """Scores of the first are [1, 3, 0, 1] with the positives 0 and 3, of the second [2, 0, 2, -2] with 2 alone."""
    excluded = NONE_EXCLUDED.clone()
    excluded[1, 3] = True
    queries = QUERIES.clone().requires_grad_()
    losses = over_positives(negative_log_likelihood, how)
    positives = torch.tensor([[0, 3], [2, 3]])
    output = contrastive_loss(queries, PASSAGES, positives, excluded, BOTH_REAL, 2, question_losses=losses)
    negatives, second = math.exp(3) + 1, math.log(2 * math.exp(2) + 1) - 2
    first = math.log(math.e + negatives) - 1
    if how == "log-sum":
        first = math.log(2 * math.e + negatives) - math.log(2 * math.e)
    assert output.loss.item() == pytest.approx((first + second) / 2, rel=1e-12)
    assert output.metrics["positive_rank"].part.item() == 1.5
    output.loss.backward()
    assert queries.grad is not None
    assert queries.grad.isfinite().all()
