"""Scripts that put no spaces between words: Han, kana, Thai, Lao, Khmer, Burmese.

Dictionaries that find words there are large, one for each language, and differ; a single character (with its marks) is
taken in place of a word instead, as UAX 29 and Lucene's StandardTokenizer do with ideographs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

import regex  # type: ignore[import-untyped]

#: a set of characters, to be used in patterns of version 1; the two are the marks of long vowels in kana
UNSPACED = r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ーｰ]&&[\p{L}\p{N}]]"
#: blocks that hold all of these, and others; fast, for texts that have none
_BLOCKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00011600-\U0003ffff]"
)
_CHARACTER = regex.compile(rf"(?V1){UNSPACED}\p{{M}}*")
_RUN = regex.compile(rf"(?V1)((?:{UNSPACED}\p{{M}}*)+)")
#: a character with the punctuation that belongs to it, or a word
_WORD = regex.compile(rf"(?V1){UNSPACED}[\p{{M}}\p{{P}}]*|[\S--{UNSPACED}]+")
#: a text is one without spaces where these characters are at least this share of it, not a name in a text with spaces
_LEAST_SHARE = 0.2


def is_unspaced(text: str) -> bool:
    """Whether the text has a character of a script without spaces."""
    return _BLOCKS.search(text) is not None and _CHARACTER.search(text) is not None


def characters_and_pairs(word: str) -> list[str]:
    """The characters of a script without spaces and their overlapping pairs, as Lucene's CJKBigramFilter gives them;
    and what stands between them."""
    found: list[str] = []
    for number, part in enumerate(_RUN.split(word)):
        if number % 2:
            characters = _CHARACTER.findall(part)
            found += [*characters, *(first + second for first, second in pairwise(characters))]
        elif part:
            found.append(part)
    return found


def split_words(text: str) -> list[str]:
    """The words of a text, each with the space behind it; in a text without spaces, characters are words, which have
    none behind them."""
    if not _BLOCKS.search(text) or len(_CHARACTER.findall(text)) < _LEAST_SHARE * len(text):
        return [f"{word} " for word in text.split()]
    words: list[str] = []
    for word in text.split():
        *parts, last = _WORD.findall(word)
        words += [*parts, f"{last} "]
    return words


def join_words(words: Iterable[str]) -> str:
    """The text of words as `split_words` gives them, with single spaces."""
    return "".join(words).rstrip()
