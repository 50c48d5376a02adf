"""Text and Markdown, in constant memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from megatron_retrieval.data.documents.reader import DocumentReader, Line, Section
from megatron_retrieval.utils.files import read_lines

_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*\s*")
_FENCE = re.compile(r" {0,3}(```|~~~)")


def read_text(path: Path) -> Iterator[Section]:
    """A file of text is one section without a title."""
    yield Section("", map(Line, read_lines(path, allow_empty=True)))


def read_markdown(path: Path) -> Iterator[Section]:
    """The first heading is the title, and no line of the text."""
    heading, title = _first_heading(path)
    lines = (text for number, text in enumerate(read_lines(path, allow_empty=True), 1) if number != heading)
    yield Section(title, map(Line, lines))


def _first_heading(path: Path) -> tuple[int, str]:
    """Line and text of the first heading outside of code; (0, "") where there is none."""
    is_code = False
    for number, text in enumerate(read_lines(path, allow_empty=True), 1):
        is_code ^= bool(_FENCE.match(text))
        heading = None if is_code else _HEADING.fullmatch(text)
        if heading and heading[1]:
            return number, heading[1]
    return 0, ""


TEXT = DocumentReader("text", "text in UTF-8", (".txt", ".text"), read_text, holds_whole=False)
MARKDOWN = DocumentReader(
    "markdown", "Markdown; the first heading is the title", (".md", ".markdown"), read_markdown, holds_whole=False
)
