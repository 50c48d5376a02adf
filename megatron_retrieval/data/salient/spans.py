"""Spans of a text, their types, and the dates that a pattern finds (Guu et al. 2020, arXiv 2002.08909, section 3.4)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

#: OntoNotes' types that name something; TIME, PERCENT, MONEY, QUANTITY, ORDINAL and CARDINAL do not
NAMED_TYPES = (
    "PERSON", "NORP", "FAC", "ORG", "GPE", "LOC", "PRODUCT", "EVENT", "WORK_OF_ART", "LAW", "LANGUAGE", "DATE",
)  # fmt: skip
#: of spans whose source says no type
UNTYPED = "NAME"
DATE = "DATE"
#: what the manifest says of the pattern below; a change of the pattern changes it
DATE_RULES = "day month [year], month day [year], month [year], year 1000 to 2099, also of a decade (1990s); version 1"

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_SHORT = r"(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?"
_DAY, _YEAR = r"(?:3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th)?", r"(?:1\d|20)\d\d"
_MONTH = rf"(?:{_MONTHS}|{_SHORT})"
_AND_YEAR = rf"(?:,? {_YEAR})?"
_DATES = re.compile(
    rf"(?<![\w$€£])(?<!\d[.,])(?:{_DAY} (?:of )?{_MONTH}{_AND_YEAR}|{_MONTH} {_DAY}(?!\w){_AND_YEAR}"
    rf"|{_MONTH},? {_YEAR}|(?:{_MONTHS})|{_YEAR}s?)(?!\w)(?![.,]\d)(?! ?%)"
)


class Span(NamedTuple):
    """Characters [start, end) of a text."""

    start: int
    end: int
    type: str


def find_dates(text: str) -> list[Span]:
    """The dates in a text, in order."""
    return [Span(*match.span(), DATE) for match in _DATES.finditer(text)]


def longest(*sources: Iterable[Span]) -> list[Span]:
    """The union without overlaps, in order: the longest span wins, of equally long ones the first source's."""
    ranked = sorted((span for source in sources for span in source), key=lambda span: span.start - span.end)
    kept: list[Span] = []
    for span in ranked:
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return sorted(kept)
