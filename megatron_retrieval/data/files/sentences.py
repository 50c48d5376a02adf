"""Documents of paragraphs, and the sentences of a paragraph."""

from __future__ import annotations

import re
from typing import NamedTuple

from sentencex import segment

from megatron_retrieval.errors import ConfigError

#: the library that finds sentence ends; another version may find others
SPLITTER = "sentencex"
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]+)*")


class Document(NamedTuple):
    """Paragraphs that follow one another; light, since it crosses between processes."""

    title: str
    paragraphs: tuple[str, ...]
    #: continues the document before it, which was too long
    is_continuation: bool = False


def check_language(language: str) -> None:
    """Raises ConfigError unless `--language` has the form of a language code."""
    if not _LANGUAGE.fullmatch(language):
        raise ConfigError(f"--language {language}: give a language code such as en, de or zh.")


def split_sentences(paragraph: str, language: str) -> list[str]:
    """The sentences of a paragraph, none of them empty; joined by white space they are the paragraph again.

    Runs of white space become one space: they mean nothing to the tokenizer, and the library fails on some of them
    (a line separator, U+2028, behind an initial).
    """
    text = " ".join(paragraph.split())
    return [sentence for part in segment(language, text) if (sentence := part.strip())] if text else []
