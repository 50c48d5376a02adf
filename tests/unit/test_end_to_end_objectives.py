"""The losses of end-to-end training against cases worked out by hand, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
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
from megatron_retrieval.training.steps.end_to_end_objectives import OBJECTIVES
from megatron_retrieval.training.steps.objective import ObjectiveConfig
from megatron_retrieval.types.losses import LossOutput

LN = math.log
NEVER = -math.inf
# Two questions with three passages, of answers with three tokens and one. Their priors are 1/2, 1/4, 1/4 and, the last
# passage of the second being a filler, 1/5, 4/5.
SCORES = torch.tensor([[LN(2), 0, 0], [3, 3 + LN(4), 99]], dtype=torch.float64)
IS_REAL = torch.tensor([[True, True, True], [True, True, False]])
IS_TOKEN = torch.tensor([[True, True, True], [True, False, False]])
FIRST = [[1 / 2, 1 / 2, 1 / 2], [1, 1 / 4, 1 / 2], [1 / 8, 1, 1 / 4]]
# behind the second answer's only token nothing counts
SECOND = [[1 / 2, 1 / 4, 1], [1 / 3, 1, 1 / 4], [1, 1, 1]]
TOKENS = torch.tensor([FIRST, SECOND], dtype=torch.float64).log()
JOINT_TOKENS = torch.tensor([1 / 2, 1 / 2, 1 / 4, 1 / 3], dtype=torch.float64).log()
# p(a | q, z): 1/8, 1/8, 1/32 and 1/2, 1/3
ANSWERS = TOKENS.masked_fill(~IS_TOKEN[:, None], 0).sum(2)
FIRST_SUM, SECOND_SUM = 1 / 2 * 1 / 8 + 1 / 4 * 1 / 8 + 1 / 4 * 1 / 32, 1 / 5 * 1 / 2 + 4 / 5 * 1 / 3
ENTROPY = (1 / 2 * LN(2) + 2 / 4 * LN(4) + 1 / 5 * LN(5) + 4 / 5 * LN(5 / 4)) / 2
# p(z | q, a): 8/13, 4/13, 1/13 and 3/11, 8/11
DIVERGENCE = (12 / 13 * LN(16 / 13) + 1 / 13 * LN(4 / 13) + 3 / 11 * LN(15 / 11) + 8 / 11 * LN(10 / 11)) / 2
#: of objectives that sum over passages
OF_PASSAGES = {"prior_entropy": ENTROPY, "posterior_divergence": DIVERGENCE, "num_unread_questions": 0}
# the reader's posterior under a flat prior: 4/9, 4/9, 1/9 and 3/5, 2/5
FIRST_DISTANCE = 4 / 9 * LN(4 / 9 * 2) + 4 / 9 * LN(4 / 9 * 4) + 1 / 9 * LN(1 / 9 * 4)
SECOND_DISTANCE = 3 / 5 * LN(3 / 5 * 5) + 2 / 5 * LN(2 / 5 * 5 / 4)
FIRST_TOKENS = [
    1 / 2 * 1 / 2 + 1 / 4 * 1 + 1 / 4 * 1 / 8,
    1 / 2 * 1 / 2 + 1 / 4 * 1 / 4 + 1 / 4 * 1,
    1 / 2 * 1 / 2 + 1 / 4 * 1 / 2 + 1 / 4 * 1 / 4,
]
JOINT_LOSS = (LN(2) + LN(2) + LN(4) + LN(3)) / 2

# of scores, is_real and what the reader says of each passage
Objective = Callable[[Tensor, Tensor, Tensor], LossOutput]
PER_PASSAGE: dict[str, tuple[Objective, Tensor]] = {
    "individual-topk": (lambda s, real, said: individual_topk(s, real, said, 2), ANSWERS),
    "rag-token": (lambda s, real, said: rag_token(s, real, said, IS_TOKEN, 2), TOKENS),
    "emdr2": (lambda s, real, said: emdr2(s, real, said, JOINT_TOKENS, 2), ANSWERS),
    "distillation": (lambda s, real, said: distillation(s, real, said, 2), ANSWERS),
}


def plain(output: LossOutput) -> dict[str, float]:
    return {"loss": output.loss.item(), **{name: value.part.item() for name, value in output.metrics.items()}}


def with_gradients(objective: Objective, scores: Tensor, is_real: Tensor, said: Tensor) -> tuple[LossOutput, Tensor]:
    """The output, and the gradients of scores and likelihoods (zero where there is none), flat; no NaN on their way."""
    leaves = [values.detach().clone().requires_grad_() for values in (scores, said)]
    with torch.autograd.set_detect_anomaly(True):
        output = objective(leaves[0], is_real, leaves[1])
        gradients = torch.autograd.grad(output.loss, leaves, allow_unused=True, materialize_grads=True)
    return output, torch.cat([gradient.flatten() for gradient in gradients])


def test_priors() -> None:
    priors = log_priors(SCORES, IS_REAL)
    expected = [[1 / 2, 1 / 4, 1 / 4], [1 / 5, 4 / 5, 0]]
    torch.testing.assert_close(priors.exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert prior_entropy(priors, 2).part.item() == pytest.approx(ENTROPY, abs=1e-12)


def test_individual_topk_by_hand() -> None:
    result = plain(individual_topk(SCORES, IS_REAL, ANSWERS, 2))
    loss = -(LN(FIRST_SUM) + LN(SECOND_SUM)) / 2
    expected = {"loss": loss, "log_likelihood": -loss, **OF_PASSAGES}
    assert result == pytest.approx(expected, abs=1e-12)


def test_rag_token_by_hand() -> None:
    result = plain(rag_token(SCORES, IS_REAL, TOKENS, IS_TOKEN, 2))
    loss = -(sum(map(LN, FIRST_TOKENS)) + LN(SECOND_SUM)) / 2
    expected = {"loss": loss, "log_likelihood": -loss, **OF_PASSAGES}
    assert result == pytest.approx(expected, abs=1e-12)


def test_joint_topk_by_hand() -> None:
    result = plain(joint_topk(JOINT_TOKENS, 2))
    assert result == pytest.approx({"loss": JOINT_LOSS, "log_likelihood": -JOINT_LOSS}, abs=1e-12)


def test_emdr2_by_hand() -> None:
    result = plain(emdr2(SCORES, IS_REAL, ANSWERS, JOINT_TOKENS, 2))
    marginal = (LN(FIRST_SUM) + LN(SECOND_SUM)) / 2
    assert result == pytest.approx(
        {
            "loss": JOINT_LOSS - marginal,
            "log_likelihood": -JOINT_LOSS,
            "marginal_log_likelihood": marginal,
            **OF_PASSAGES,
        },
        abs=1e-12,
    )


def test_distillation_by_hand() -> None:
    result = plain(distillation(SCORES, IS_REAL, ANSWERS, 2))
    assert result["loss"] == pytest.approx((FIRST_DISTANCE + SECOND_DISTANCE) / 2, abs=1e-12)
    assert result["log_likelihood"] == pytest.approx((LN(FIRST_SUM) + LN(SECOND_SUM)) / 2, abs=1e-12)
    assert distillation(ANSWERS, IS_REAL, ANSWERS, 2).loss.item() == pytest.approx(0, abs=1e-12)


def test_the_temperature_of_distillation_divides_what_the_reader_says() -> None:
    tempered = distillation(SCORES, IS_REAL, ANSWERS, 2, temperature=2.0)
    assert tempered.loss.item() == distillation(SCORES, IS_REAL, ANSWERS / 2, 2).loss.item()
    assert plain(tempered)["log_likelihood"] == pytest.approx((LN(FIRST_SUM) + LN(SECOND_SUM)) / 2, abs=1e-12)


class _Reading:
    """Notes how each passage was read."""

    def __init__(self) -> None:
        self.module = torch.nn.Dropout(0.5)
        self.is_real, self.drops = IS_REAL, []

    def each(self) -> Tensor:
        assert not torch.is_grad_enabled()
        self.drops.append(self.module.training)
        return ANSWERS

    def together(self, passage_scores: Tensor | None = None) -> Tensor:
        assert self.module.training
        return JOINT_TOKENS


@pytest.mark.parametrize(
    ("name", "settings", "drops"),
    [
        ("distillation", ObjectiveConfig(), False),
        ("emdr2", ObjectiveConfig(), True),
        ("emdr2", ObjectiveConfig(emdr2_dropout=False), False),
    ],
)
def test_the_reader_as_a_teacher_drops_nothing_unless_asked_to(
    name: str, settings: ObjectiveConfig, drops: bool
) -> None:
    """As a pupil, right afterwards, it does."""
    reading = _Reading()
    OBJECTIVES[name].loss(reading, SCORES, torch.ones(1), 2, settings)
    assert reading.drops == [drops]


def test_distillation_has_a_temperature() -> None:
    settings = ObjectiveConfig(distillation_temperature=3.0)
    loss = OBJECTIVES["distillation"].loss
    losses = [loss(_Reading(), SCORES, torch.ones(1), 2, own).loss for own in (settings, ObjectiveConfig())]
    retriever = [distillation(SCORES, IS_REAL, ANSWERS, 2, temperature).loss for temperature in (3.0, 1.0)]
    torch.testing.assert_close(losses[0] - losses[1], retriever[0] - retriever[1])


@pytest.mark.parametrize("name", ["individual-topk", "rag-token"])
def test_gradients_of_scores_and_likelihoods(name: str) -> None:
    objective, said = PER_PASSAGE[name]
    leaves = [values.clone().requires_grad_() for values in (SCORES, said)]
    assert torch.autograd.gradcheck(lambda s, a: objective(s, IS_REAL, a).loss, leaves)


@pytest.mark.parametrize("name", ["emdr2", "distillation"])
def test_gradients_of_scores_alone(name: str) -> None:
    objective, said = PER_PASSAGE[name]
    scores = SCORES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: objective(s, IS_REAL, said).loss, [scores])
    _, gradients = with_gradients(objective, SCORES, IS_REAL, said)
    assert gradients[: SCORES.numel()].abs().sum() > 0.1
    assert (gradients[SCORES.numel() :] == 0).all()


def test_emdr2_teaches_the_reader_what_joint_topk_does() -> None:
    tokens = JOINT_TOKENS.clone().requires_grad_()
    emdr2(SCORES, IS_REAL, ANSWERS, tokens, 2).loss.backward()
    assert tokens.grad is not None
    assert tokens.grad.tolist() == [-0.5] * 4
    assert torch.autograd.gradcheck(lambda values: joint_topk(values, 2).loss, [tokens])


@pytest.mark.parametrize("name", PER_PASSAGE)
def test_bf16_inputs_are_reckoned_in_float32(name: str) -> None:
    """What comes is rounded; nothing is rounded again, even between passages that score alike and low."""
    objective, said = PER_PASSAGE[name]
    scores, said = (values.bfloat16() for values in (SCORES + 40, said - 30))
    coarse, gradients = with_gradients(objective, scores, IS_REAL, said)
    fine, expected = with_gradients(objective, scores.double(), IS_REAL, said.double())
    assert coarse.metrics["prior_entropy"].part.dtype == torch.float32
    assert plain(coarse) == pytest.approx(plain(fine), rel=1e-5, abs=1e-5)
    torch.testing.assert_close(gradients.double(), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("garbage", [NEVER, math.nan, math.inf, 1e38])
@pytest.mark.parametrize("name", PER_PASSAGE)
def test_fillers_change_nothing(name: str, garbage: float) -> None:
    """Be it a passage or, without any real one, a question; whatever stands in their places."""
    objective, said = PER_PASSAGE[name]
    expected, own = with_gradients(objective, SCORES, IS_REAL, said)

    def padded(values: Tensor, filler: float) -> Tensor:
        wide = torch.full((3, 5, *values.shape[2:]), filler, dtype=values.dtype)
        wide[:2, :3] = values.masked_fill(~IS_REAL.view(2, 3, *[1] * (values.dim() - 2)), filler)
        return wide

    if name == "rag-token":
        is_token = torch.cat([IS_TOKEN, torch.ones(1, 3, dtype=torch.bool)])
        objective = lambda s, real, said: rag_token(s, real, said, is_token, 2)  # noqa: E731
    is_real = torch.zeros(3, 5, dtype=torch.bool)
    is_real[:2, :3] = IS_REAL
    output, gradients = with_gradients(objective, padded(SCORES, garbage), is_real, padded(said, garbage))
    assert plain(output) == pytest.approx(plain(expected), abs=1e-12)
    of_scores, of_said = gradients[:15].view(3, 5), gradients[15:].view(3, 5, *said.shape[2:])
    found = torch.cat([of_scores[:2, :3].flatten(), of_said[:2, :3].flatten()])
    torch.testing.assert_close(found, own, rtol=0, atol=1e-12)
    assert (of_scores[~is_real] == 0).all()
    assert (of_said[~is_real] == 0).all()


@pytest.mark.parametrize("name", PER_PASSAGE)
def test_two_halves_sum_to_the_whole(name: str) -> None:
    objective, said = PER_PASSAGE[name]
    whole = plain(objective(SCORES, IS_REAL, said))
    if name == "rag-token":
        parts = [rag_token(SCORES[i], IS_REAL[i], said[i], IS_TOKEN[i], 2) for i in (slice(1), slice(1, 2))]
    elif name == "emdr2":
        rows = ((slice(1), slice(3)), (slice(1, 2), slice(3, 4)))
        parts = [emdr2(SCORES[i], IS_REAL[i], said[i], JOINT_TOKENS[tokens], 2) for i, tokens in rows]
    else:
        parts = [objective(SCORES[i], IS_REAL[i], said[i]) for i in (slice(1), slice(1, 2))]
    first, second = map(plain, parts)
    assert {name: first[name] + second[name] for name in first} == pytest.approx(whole, abs=1e-12)


def test_with_one_passage_all_readers_learn_the_same() -> None:
    scores, is_real = SCORES[:1, :1], IS_REAL[:1, :1]
    expected, gradient = with_gradients(lambda s, real, said: joint_topk(said, 1), scores, is_real, TOKENS[0, 0])
    for objective, said in (
        (lambda s, real, said: individual_topk(s, real, said.sum()[None, None], 1), TOKENS[0, 0]),
        (lambda s, real, said: rag_token(s, real, said[None, None], IS_TOKEN[:1], 1), TOKENS[0, 0]),
    ):
        output, own = with_gradients(objective, scores, is_real, said)
        assert output.loss.item() == pytest.approx(expected.loss.item(), abs=1e-12)
        torch.testing.assert_close(own, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PER_PASSAGE)
def test_a_passage_without_a_chance(name: str) -> None:
    """The third passage of the first question makes its answer impossible: by hand, the sums are without it."""
    objective, said = PER_PASSAGE[name]
    said = said.clone()
    said[0, 2] = NEVER
    output, gradients = with_gradients(objective, SCORES, IS_REAL, said)
    first_sum = FIRST_SUM - 1 / 4 * 1 / 32
    first_tokens = [token - 1 / 4 * p for token, p in zip(FIRST_TOKENS, FIRST[2], strict=True)]
    expected = {
        "individual-topk": -LN(first_sum) - LN(SECOND_SUM),
        "rag-token": -sum(map(LN, first_tokens)) - LN(SECOND_SUM),
        "emdr2": 2 * JOINT_LOSS - LN(first_sum) - LN(SECOND_SUM),
        "distillation": 1 / 2 * LN(1 / 2 * 2) + 1 / 2 * LN(1 / 2 * 4) + SECOND_DISTANCE,
    }
    assert 2 * output.loss.item() == pytest.approx(expected[name], abs=1e-12)
    assert torch.isfinite(gradients).all()
    assert gradients[2] > 0.01  # it is to score lower
    assert output.metrics["num_unread_questions"].part == 0


@pytest.mark.parametrize("name", PER_PASSAGE)
def test_a_question_that_no_passage_answers_teaches_nothing_and_is_counted(name: str) -> None:
    objective, said = PER_PASSAGE[name]
    said = said.clone()
    said[0] = NEVER
    if name == "rag-token":  # one token is enough
        said[0] = TOKENS[0]
        said[0, :, 1] = NEVER
    output, gradients = with_gradients(objective, SCORES, IS_REAL, said)
    expected = {"distillation": SECOND_DISTANCE, "emdr2": 2 * JOINT_LOSS - LN(SECOND_SUM)}
    assert 2 * output.loss.item() == pytest.approx(expected.get(name, -LN(SECOND_SUM)), abs=1e-12)
    assert output.metrics["num_unread_questions"].part == 1
    assert torch.isfinite(gradients).all()
    of_scores, of_said = gradients[:6].view(2, 3), gradients[6:].view(said.shape)
    assert (of_scores[0] == 0).all()
    assert (of_said[0] == 0).all()
    assert of_scores[1].abs().sum() > 0.01
