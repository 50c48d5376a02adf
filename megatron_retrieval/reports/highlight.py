"""What to look at in a passage: the words that answer a question in bold and the answers underlined, for terminals."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

#: (start, stop) in characters
Span = tuple[int, int]

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
    parts = []
    for piece, (is_bold, is_answer) in marked_pieces(text, [best_window(text, question)], answer_spans(text, answers)):
        style = (BOLD if is_bold else "") + (UNDERLINE if is_answer else "")
        parts.append(f"{style}{piece}{RESET}" if style else piece)
    return "".join(parts)


def answer_spans(text: str, answers: Sequence[str]) -> list[Span]:
    """Where the answers stand in `text` as whole words, whatever their case and the white space between them."""
    joined = (r"\s+".join(map(re.escape, answer.split())) for answer in answers)
    patterns = (rf"(?<!\w){words}(?!\w)" for words in joined if words)
    return [match.span() for pattern in patterns for match in re.finditer(pattern, text, re.IGNORECASE)]


def marked_pieces(text: str, *layers: Sequence[Span]) -> Iterator[tuple[str, tuple[bool, ...]]]:
    """`text` in pieces, cut where a span of a layer begins or ends; each with the layers that it belongs to."""
    inside = [[False] * len(text) for _ in layers]
    for marks, spans in zip(inside, layers, strict=True):
        for start, stop in spans:
            marks[start:stop] = [True] * (stop - start)
    numbered = zip(text, *inside, strict=True)
    for marked, characters in itertools.groupby(numbered, key=lambda item: item[1:]):
        yield "".join(character for character, *_ in characters), marked


def best_window(text: str, question: str) -> Span:
    """(start, stop) in characters of the `WINDOW_WORDS` words that hold most distinct words of the question,
    narrowed to the first and last of them; (0, 0) where none is found."""
    words, shared = _shared(text, question)
    found = [_stem(words[number].group().lower()) for number in shared]
    best, most = (0, 0), 0
    for place, first in enumerate(shared):
        inside = [number for number in shared[place:] if number < first + WINDOW_WORDS]
        distinct = len(set(found[place : place + len(inside)]))
        if distinct > most:
            best, most = (words[first].start(), words[inside[-1]].end()), distinct
    return best


def question_words(text: str, question: str) -> list[Span]:
    """Where words of the question stand in `text`, but for those that every question has."""
    words, shared = _shared(text, question)
    return [words[number].span() for number in shared]


def _shared(text: str, question: str) -> tuple[list[re.Match[str]], list[int]]:
    """The words of `text`, and the numbers of those that the question has too."""
    wanted = {_stem(word) for word in _words(question) if word not in _QUESTION_WORDS}
    words = list(_WORD.finditer(text))
    return words, [number for number, word in enumerate(words) if _stem(word.group().lower()) in wanted]


def _words(text: str) -> Iterable[str]:
    return (match.group().lower() for match in _WORD.finditer(text))


def _stem(word: str) -> str:
    """Plural and singular alike; enough to find words that the eye would."""
    return word.removesuffix("s") if len(word) > 3 else word
