"""Texts to the stems that lexical search counts, as Lucene's analyser for English makes them; of scripts without
spaces, characters and pairs of them."""

from __future__ import annotations

from dataclasses import dataclass

import regex  # type: ignore[import-untyped]
import Stemmer

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.utils.scripts import characters_and_pairs, is_unspaced

NO_STEMMER = "none"
#: letters, digits and marks; "3.5" and "o'brien" stay whole, as in Unicode's rules for word boundaries (UAX 29)
_WORD = regex.compile(r"[\p{L}\p{N}\p{M}_]+(?:[.'’](?=[\p{L}\p{N}])[\p{L}\p{N}\p{M}_]+)*")
_POSSESSIVE = ("'s", "’s")
#: the 33 words that Lucene leaves out of English text
_STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)


@dataclass(kw_only=True, frozen=True)
class WordConfig:
    """Which words of a text count, and which are the same."""

    stemmer: str = "porter"
    """Snowball algorithm that reduces words to stems: porter and english for English, german, finnish, ...; none."""
    stop_words: bool = True
    """Leave out Lucene's 33 English stop words and possessive endings; --no-stop-words for other languages."""

    def __post_init__(self) -> None:
        known = [*Stemmer.algorithms(), NO_STEMMER]
        if self.stemmer not in known:
            raise ConfigError(f"--stemmer {self.stemmer}: choose one of {', '.join(known)}.")


class WordAnalyzer:
    """Splits texts into words in lower case and reduces them to stems.

    Args:
        config: the same for passages and questions.
    """

    def __init__(self, config: WordConfig) -> None:
        self._stop_words = config.stop_words
        self._stem = None if config.stemmer == NO_STEMMER else Stemmer.Stemmer(config.stemmer).stemWords

    def stems(self, text: str) -> list[str]:
        """The stems of `text` in their order, as often as they occur."""
        words: list[str] = _WORD.findall(text.lower())
        if is_unspaced(text):
            words = [part for word in words for part in characters_and_pairs(word)]
        if self._stop_words:
            bare = (word[:-2] if word.endswith(_POSSESSIVE) else word for word in words)
            words = [word for word in bare if word not in _STOP_WORDS]
        return self._stem(words) if self._stem else words
