"""Of the answers that passages give each for itself, the one of the greatest likelihood; likelihoods by hand."""

from __future__ import annotations

from math import log

import pytest

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.fusion_search import Candidate, likeliest
from megatron_retrieval.models.passage_scores import PassageScoreConfig


def test_equal_answers_add_up() -> None:
    """0.4 alone is less than 0.2 and 0.3 together."""
    found = likeliest([Candidate((5, 1), log(0.2), 0), Candidate((7, 1), log(0.4), 1), Candidate((5, 1), log(0.3), 3)])
    assert (found.ids, found.passage) == ([5, 1], 3)
    assert found.score == pytest.approx(log(0.5), abs=1e-12)


def test_an_answer_and_its_beginning_are_two() -> None:
    found = likeliest([Candidate((5, 1), log(0.2), 0), Candidate((5,), log(0.2), 1), Candidate((7, 1), log(0.3), 2)])
    assert (found.ids, found.passage) == ([7, 1], 2)


def test_of_equal_ones_the_first() -> None:
    answers = ((9, 1), (5, 1), (5, 1), (9, 1))
    found = likeliest([Candidate(ids, log(0.25), place) for place, ids in enumerate(answers)])
    assert (found.ids, found.passage) == ([9, 1], 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"passage_score_use": "joint"}, "'joint' is none of none, bias, marginal"),
        ({"passage_score_divisor": 0.0}, "must be above 0, not 0.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PassageScoreConfig(**settings)  # type: ignore[arg-type]
