"""Tables line up; highlighted passages keep their words."""

from __future__ import annotations

import re

import pytest

from megatron_retrieval.reports.highlight import BOLD, RESET, UNDERLINE, best_window, highlight
from megatron_retrieval.reports.tables import percent, text_table

TEXT = "The Seine is a river in France. It flows through Paris, the capital, and reaches the sea at Le Havre."


def test_table_aligns_names_left_and_figures_right() -> None:
    table = text_table(["", "before", "after"], [["recall@1", "1.0", "93.5"], ["recall@20", percent(0.1234), 100]])
    assert table.splitlines() == [
        "           before  after",
        "---------  ------  -----",
        "recall@1      1.0   93.5",
        "recall@20    12.3    100",
    ]
    with pytest.raises(ValueError, match="as many cells"):
        text_table(["a"], [["x", "y"]])


def test_window_holds_most_words_of_the_question() -> None:
    start, stop = best_window(TEXT, "Through which capitals does it flow to the sea?")
    assert TEXT[start:stop] == "flows through Paris, the capital, and reaches the sea"
    assert best_window(TEXT, "Who wrote Hamlet?") == (0, 0)
    assert best_window("", "anything") == (0, 0)


def test_highlight_marks_window_and_answers_only() -> None:
    marked = highlight(TEXT, "Which river is in France?", ["PARIS", "sea at"])
    assert f"{BOLD}river in France{RESET}" in marked
    assert f"{UNDERLINE}Paris{RESET}" in marked
    assert f"{UNDERLINE}sea at{RESET}" in marked
    assert re.sub(r"\033\[\d+m", "", marked) == TEXT
    assert f"{BOLD}Paris{RESET}" not in highlight("Parisian", "", ["Paris"])
    assert f"{BOLD}{UNDERLINE}France{RESET}" in highlight(TEXT, "France", ["France"])
