"""Answer matching follows DPR's has_answer; its variants are switches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest

from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.evaluation.answer_matching import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.types.questions import Passage

REAL_DATA = Path(os.environ.get("MEGATRON_RETRIEVAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def _hit(answers: list[str], text: str, *, title: str = "", mode: Literal["string", "regex"] = "string") -> bool:
    matcher = AnswerMatcher(AnswerMatchConfig(answer_match=mode, match_title=bool(title)))
    return matcher.hits(answers, [Passage("1", title, text)])[0]


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("new york", "He moved to New York, in 1920.", True),
        ("York", "Yorkshire", False),  # whole tokens
        ("New York", "New, York", False),  # punctuation is a token
        ("U.S.", "the U.S. army", True),
        ("Zürich", "Zu\u0308rich is a city", True),  # NFD on both sides
        ("14", "in 1914", False),
        ("$1.5 million", "for $1.5 million.", True),
        ("O’Brien", "O'Brien", False),  # apostrophes differ, as in DPR
        ("", "anything", False),
        (" \u200b ", "\u200b", False),  # no visible token
        ("a b", "a\nb", True),
    ],
)
def test_strings_match_by_tokens(answer: str, text: str, expected: bool) -> None:
    assert _hit([answer], text) is expected
    assert _hit(["never there", answer], text) is expected


def test_title_counts_only_where_asked() -> None:
    passage = Passage("1", "Paris", "The capital of France.")
    for match_title in (False, True):
        matcher = AnswerMatcher(AnswerMatchConfig(match_title=match_title))
        assert matcher.hits(["paris"], [passage]) == [match_title]
    assert not _hit(["Paris The"], "Lyon", title="Paris")


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"Long Island|New\s?York", "in NEW YORK", True),
        (r"^second", "first line\nsecond line", True),  # MULTILINE
        (r"caf.\u0301", "the Café", True),  # both sides in NFD
        (r"1?9\d\d$", "in 1987", True),
        (r"\bYork\b", "Yorkshire", False),
    ],
)
def test_regular_expressions_match_the_raw_text(pattern: str, text: str, expected: bool) -> None:
    assert _hit([pattern], text, mode="regex") is expected


def test_bad_regular_expression_matches_nothing_and_is_counted() -> None:
    matcher = AnswerMatcher(AnswerMatchConfig(answer_match="regex"))
    passages = [Passage("1", "", "(unclosed"), Passage("2", "", "fine")]
    assert matcher.hits(["(unclosed", "fin."], passages) == [False, True]
    assert matcher.num_bad_patterns == 1


@pytest.mark.real_data
@pytest.mark.skipif(not REAL_DATA.exists(), reason=f"no real data at {REAL_DATA}")
@pytest.mark.parametrize(
    ("name", "mode", "num_questions", "num_bad_patterns"),
    [
        ("nq-test.qa.csv", "string", 3610, 0),
        ("trivia-dev.qa.csv", "string", 1999, 0),
        ("webq-test.jsonl", "string", 2032, 0),
        ("curatedtrec-test.jsonl", "regex", 694, 3),  # escaped letters with accents, which NFD takes apart
    ],
)
def test_every_answer_of_the_field_can_be_found(
    name: str, mode: Literal["string", "regex"], num_questions: int, num_bad_patterns: int
) -> None:
    """A text that holds the answer between other words is a hit, and an unrelated text is none."""
    matcher = AnswerMatcher(AnswerMatchConfig(answer_match=mode))
    questions = list(read_questions(REAL_DATA / "dpr_questions" / name))
    assert len(questions) == num_questions
    unrelated = Passage("0", "", "zzyzx")
    missed = []
    for question in questions:
        is_hit = matcher.for_answers(question.answers)
        # a pattern is no example of what it matches: regular expressions are only compiled and applied
        holding = [Passage("1", "", f"It was {answer} there.") for answer in question.answers]
        missed += [question.text for passage in holding if mode == "string" and not is_hit(passage)]
        assert not is_hit(unrelated) or mode == "regex"
    assert missed == []
    assert matcher.num_bad_patterns == num_bad_patterns
