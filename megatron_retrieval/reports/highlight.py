"""Passages in a terminal: the words that answer a question in bold, answers underlined."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

BOLD, UNDERLINE, RESET = "\033[1m", "\033[4m", "\033[0m"
_WORD = re.compile(r"\w+")
#: words of the passage in the window that is shown in bold
WINDOW_WORDS = 14
#: words that say how a question is asked rather than what about
_QUESTION_WORDS = frozenset(
    word
    for words in (
        ("a", "an", "and", "as", "at", "by", "for", "from", "in", "it", "its", "of", "on", "or", "that", "the", "to"),
        ("are", "be", "did", "do", "does", "had", "has", "have", "is", "was", "were", "will", "with", "their", "there"),
        ("how", "this", "what", "when", "where", "which", "who", "whom", "whose", "why"),
    )
    for word in words
)


def highlight(text: str, question: str, answers: Sequence[str] = ()) -> str:
    """`text` with the window that shares most words with `question` in bold and the `answers` underlined."""
    bold = best_window(text, question)
    underlined = [match.span() for answer in answers if answer for match in _occurrences(answer, text)]
    styles = [_style(position, bold, underlined) for position in range(len(text))]
    parts: list[str] = []
    current = ""
    for character, style in zip(text, styles, strict=True):
        if style != current:
            parts.append((RESET if current else "") + style)
            current = style
        parts.append(character)
    return "".join(parts) + (RESET if current else "")


def best_window(text: str, question: str) -> tuple[int, int]:
    """(start, stop) in characters of the `WINDOW_WORDS` words that hold most distinct words of the question,
    narrowed to the first and last of them; (0, 0) where none is found."""
    wanted = {word for word in _words(question) if word not in _QUESTION_WORDS}
    words = list(_WORD.finditer(text))
    found = [_stem(match.group().lower()) for match in words]
    wanted = {_stem(word) for word in wanted}
    best: tuple[int, int, int] = (0, 0, 0)
    for first in (number for number, word in enumerate(found) if word in wanted):
        inside = [number for number in range(first, min(first + WINDOW_WORDS, len(found))) if found[number] in wanted]
        score = len({found[number] for number in inside})
        if score > best[0]:
            best = (score, first, inside[-1])
    score, first, last = best
    return (words[first].start(), words[last].end()) if score else (0, 0)


def _words(text: str) -> Iterable[str]:
    return (match.group().lower() for match in _WORD.finditer(text))


def _stem(word: str) -> str:
    """Plural and singular alike; enough to find words that the eye would."""
    return word.removesuffix("s") if len(word) > 3 else word


def _occurrences(answer: str, text: str) -> Iterable[re.Match[str]]:
    return re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE)


def _style(position: int, bold: tuple[int, int], underlined: Sequence[tuple[int, int]]) -> str:
    is_bold = bold[0] <= position < bold[1]
    is_underlined = any(start <= position < stop for start, stop in underlined)
    return (BOLD if is_bold else "") + (UNDERLINE if is_underlined else "")
