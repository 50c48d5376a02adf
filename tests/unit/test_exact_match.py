"""Exact match and F1: figures of the official script on cases that are easy to get wrong, and laws that always hold."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.evaluation.exact_match import (
    AnswerScore,
    AnswerScoreConfig,
    answer_metrics,
    normalized_answer,
    score_answer,
)
from megatron_retrieval.evaluation.predictions import Prediction, ReadQuestion, write_predictions
from megatron_retrieval.types.questions import Passage

PLAIN = AnswerScoreConfig()


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Eiffel\tTower!", "eiffel tower"),
        ("U.S.", "us"),
        ("mother-in-law", "motherinlaw"),
        ("an answer a day", "answer day"),
        ("Theatre an", "theatre"),
        ("a-ha", "aha"),  # punctuation goes before articles are looked for
        ("(the) 1,000", "1000"),
        ("“the” end", "“ ” end"),  # only ASCII punctuation counts
        ("A", ""),
        ("rock\u00a0n’ roll", "rock n’ roll"),
    ],
)
def test_normalisation(text: str, normalised: str) -> None:
    assert normalized_answer(text) == normalised


@pytest.mark.parametrize(
    ("prediction", "answers", "exact_match", "f1"),
    [
        ("the Denver Broncos.", ["Denver Broncos", "Broncos"], 1, 1),
        ("Broncos of Denver", ["Denver Broncos"], 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("new new york", ["new york york"], 0, 2 / 3),  # a word counts as often as both have it
        ("Paris", ["London", "Paris, France"], 0, 2 / 3),
        ("Paris", ["London"], 0, 0),
        ("42", ["42.0"], 0, 0),
        ("", ["a"], 0, 0),  # no answer is never right, although "a" normalises to nothing
        ("the", ["The"], 1, 1),
        ("Paris", [], 0, 0),
    ],
)
def test_scores(prediction: str, answers: list[str], exact_match: float, f1: float) -> None:
    score = score_answer(prediction, answers, PLAIN)
    assert (score.exact_match, score.f1) == (exact_match, pytest.approx(f1))


def test_decomposition_is_a_switch() -> None:
    composed, decomposed = "Beyoncé", unicodedata.normalize("NFD", "Beyoncé")
    assert score_answer(composed, [decomposed], PLAIN).exact_match == 0
    assert score_answer(composed, [decomposed], AnswerScoreConfig(decompose_answers=True)).exact_match == 1


@given(st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_laws(prediction: str, answers: list[str]) -> None:
    score = score_answer(prediction, answers, PLAIN)
    assert 0 <= score.exact_match <= score.f1 <= 1
    assert score == score_answer(f" {prediction} ", answers[::-1], PLAIN)
    if prediction.strip():
        assert score_answer(prediction, [*answers, prediction.upper().lower()], PLAIN).f1 >= score.f1
        assert score_answer(prediction, [prediction], PLAIN) == AnswerScore(1, 1)
    assert normalized_answer(normalized_answer(prediction)) == normalized_answer(prediction)


def test_metrics_with_intervals() -> None:
    metrics = answer_metrics([AnswerScore(1, 1), AnswerScore(0, 0.5), AnswerScore(0, 0), AnswerScore(0, 0.5)])
    assert (metrics["num_questions"], metrics["exact_match"], metrics["f1"]) == (4, 0.25, 0.5)
    assert metrics["exact_match_ci95"] == [0, 0.75]
    assert 0 < metrics["f1_ci95"][0] < 0.5 < metrics["f1_ci95"][1] < 1


def test_predictions_file(tmp_path: Path) -> None:
    question = ReaderQuestion("7", "où?", ("là",), (Passage("p", "t", "x"), Passage("r", "t", "là")), (2.0, 1.0))
    read = [
        ReadQuestion(question, Prediction("là", 0.5, 1), AnswerScore(1, 1)),
        ReadQuestion(question, Prediction(""), AnswerScore(0, 0)),
    ]
    write_predictions(tmp_path / "predictions.jsonl", read)
    first, second = map(json.loads, (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
    assert first == {
        "id": "7", "question": "où?", "answers": ["là"], "prediction": "là", "exact_match": 1, "f1": 1, "score": 0.5,
        "passage": "r",
    }  # fmt: skip
    assert (second["prediction"], second["passage"]) == ("", None)
