"""Passages and answers as lines of a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from megatron_retrieval.reports.highlight import BOLD, RESET, highlight
from megatron_retrieval.types.questions import Passage


def uses_color(given: bool | None) -> bool:
    """Whether bold and underline are written: as asked for, or where the output is a terminal and NO_COLOR is not
    set."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ if given is None else given


def bold(text: str, in_color: bool) -> str:
    """The text, in bold where that is wanted."""
    return f"{BOLD}{text}{RESET}" if in_color else text


def found_lines(
    found: Sequence[tuple[Passage, float]], question: str, answers: Sequence[str] = (), *, in_color: bool
) -> str:
    """Passages with rank, score, id and title, the words that speak of the question in bold, answers underlined."""
    lines = []
    for rank, (passage, score) in enumerate(found, 1):
        text = highlight(passage.text, question, answers) if in_color else passage.text
        lines.append(f"{rank}. {bold(passage.title, in_color)}  (score {score:.4f}, id {passage.id})\n   {text}\n\n")
    return "".join(lines)
