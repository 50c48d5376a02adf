"""The page of examples: everything is escaped, answers are marked where they stand."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.evaluation.exact_match import AnswerScore
from megatron_retrieval.evaluation.predictions import Prediction, ReadQuestion
from megatron_retrieval.reports.reading_page import write_reading_page
from megatron_retrieval.types.questions import Passage

EVIL = "<script>alert('x')</script> & \"quotes\""
PASSAGES = (Passage("1<", EVIL, f"{EVIL} of Paris, paris; Parisians"), Passage("2", "T", "Lyon <b>Paris</b>"))


def page(tmp_path: Path, *examples: ReadQuestion) -> str:
    write_reading_page(tmp_path / "p.html", examples, title=EVIL, facts={EVIL: 0.5})
    return (tmp_path / "p.html").read_text(encoding="utf-8")


def example(text: str, passage: int | None, exact_match: float) -> ReadQuestion:
    question = ReaderQuestion("1", EVIL, ("Paris", EVIL), PASSAGES, (1.0, 0.5))
    return ReadQuestion(question, Prediction(text, 1.0, passage), AnswerScore(exact_match, 1.0))


def test_nothing_of_the_data_becomes_markup(tmp_path: Path) -> None:
    html = page(tmp_path, example(EVIL, 0, 0), example("", None, 0))
    assert "<script" not in html
    assert "<b>Paris" not in html
    open_tags: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "link", "br", "input"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Balance().feed(html)
    assert not open_tags


def test_answers_are_marked_and_the_prediction_framed_where_it_was_read(tmp_path: Path) -> None:
    html = page(tmp_path, example("Lyon", 1, 0), example("Paris", 0, 1))
    wrong, right = re.findall(r"<details.*?</details>", html, re.DOTALL)
    assert ('class="wrong"' in wrong, "✗" in wrong) == (True, True)
    assert ('class="right"' in right, "✓" in right) == (True, True)
    assert "<mark>Paris</mark>, <mark>paris</mark>; Parisians" in wrong
    assert '<span class="predicted">Lyon</span>' in wrong
    first, second = right.split("</article>")[:2]
    assert '<mark><span class="predicted">Paris</span></mark>' in first
    assert 'class="predicted"' not in second
    assert "taken from here" in first
    assert "taken from here" not in second


def test_passages_that_tell_something_can_be_picked_out(tmp_path: Path) -> None:
    passages = tuple(Passage(str(n), f"T{n}", text) for n, text in enumerate(("Berlin", "New\u00a0\n York", "Oslo is")))
    question = ReaderQuestion("q<1", "where?", ("New York",), passages, (0.0,) * 3)
    html = page(tmp_path, ReadQuestion(question, Prediction("oslo", -0.25), AnswerScore(0.0, 0.0)))
    assert re.findall(r'<article class="(\w+)"><h2>(\d\. \w+)', html) == [
        ("silent", "1. T0"),
        ("telling", "2. T1"),
        ("telling", "3. T2"),
    ]
    assert "<mark>New\u00a0\n York</mark>" in html
    assert "question q&lt;1 · score of the answer -0.25</small>" in html
    assert "score 0" not in html  # the file had none


def test_many_answers_and_no_passages(tmp_path: Path) -> None:
    question = ReaderQuestion("1", "where?", tuple(f"a{n}" for n in range(8)))
    html = page(tmp_path, ReadQuestion(question, Prediction("a7"), AnswerScore(1.0, 1.0)))
    assert "acceptable: a0 · a1 · a2 · a3 · a4 · 3 more</small></summary>" in html
    assert "acceptable: a0 · a1 · a2 · a3 · a4 · a5 · a6 · a7</small></p>" in html
    assert "No passages were read." in html
