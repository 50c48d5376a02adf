"""Text normalised as DPR's answer matching wants it, so that "contains the answer" is a substring test."""

from __future__ import annotations

import unicodedata

import regex  # type: ignore[import-untyped]

from megatron_retrieval.utils.scripts import UNSPACED, is_unspaced

#: a run of letters, digits and marks, or one other visible character
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
#: the same in texts of scripts without spaces, whose characters are tokens
_UNSPACED_TOKEN = regex.compile(rf"(?V1){UNSPACED}\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--{UNSPACED}]+|[^\p{{Z}}\p{{C}}]")


def answer_tokens(text: str) -> tuple[str, ...]:
    """The tokens of `text` after canonical decomposition (NFD), in lower case."""
    return tuple(normalized(text).split())


def normalized(text: str) -> str:
    """The tokens of `text` joined and surrounded by spaces.

    No token holds a space, so `normalized(answer) in normalized(passage)` holds exactly where the answer's tokens are
    a contiguous subsequence of the passage's. An answer without tokens gives two spaces, which no passage contains
    unless it has no tokens either.
    """
    tokens = (_UNSPACED_TOKEN if is_unspaced(text) else _TOKEN).findall(unicodedata.normalize("NFD", text))
    # Lowered only now: a final sigma depends on its neighbours, and those end with the token.
    return f" {' '.join(tokens)} ".lower()
