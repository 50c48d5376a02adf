"""Sentences with masked spans, as token ids: no text can forge a mask, and none is lost in a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary

Bounds = tuple[int, int]


@dataclass(frozen=True)
class MaskedText:
    """A sentence in which spans are hidden; what it is made of is exactly what the whole sentence is made of.

    Attributes:
        ids: of the sentence, every masked occurrence replaced.
        spans: ids that the first occurrence of each span had, in the order of the spans.
        end: place in `ids` behind the last mask.
        hidden: ids of everything that is masked, every occurrence of every span, in the order of the text.
    """

    ids: list[int]
    spans: list[list[int]]
    end: int
    hidden: list[int]


class TextMasker:
    """Hides spans behind what a vocabulary has for it: a sentinel for each span, in their order, or its mask token.

    Args:
        each_token: as many mask tokens as the span has tokens, as a masked language model fills them; else one.

    Raises:
        ConfigError: the vocabulary has neither mask token nor sentinels.
    """

    def __init__(self, vocabulary: Vocabulary, *, each_token: bool = False) -> None:
        self._vocabulary, self._each_token = vocabulary, each_token
        if not vocabulary.sentinel_ids and vocabulary.special.mask is None:
            raise ConfigError(
                f"The vocabulary {vocabulary.path} has neither a mask token nor sentinels: no span can be masked."
            )

    def mask(self, text: str, spans: Sequence[Sequence[Bounds]]) -> MaskedText | None:
        """Hide spans of a sentence.

        Args:
            spans: of each, the characters [start, end) of all its occurrences; the first is the one to recover.

        Returns:
            None where an occurrence does not begin and end with tokens.
        """
        (ids,) = self._vocabulary.encode([text])
        offsets = self._vocabulary.offsets(text)
        found: list[tuple[range, int]] = []
        for number, occurrences in enumerate(spans):
            for start, end in occurrences:
                tokens = token_range(text, offsets, start, end)
                if tokens is None:
                    return None
                found.append((tokens, number))
        targets = [[ids[place] for place in found[first][0]] for first in _firsts(spans)]
        masked: list[int] = []
        hidden: list[int] = []
        done, end = 0, 0
        for tokens, number in sorted(found, key=lambda item: item[0].start):
            if tokens.start < done:
                return None
            masked += ids[done : tokens.start] + self.masks(number, len(tokens))
            hidden += ids[tokens.start : tokens.stop]
            done, end = tokens.stop, len(masked)
        return MaskedText(masked + ids[done:], targets, end, hidden)

    def masks(self, number: int, num_tokens: int) -> list[int]:
        """What stands for the span of this number."""
        if self._vocabulary.sentinel_ids:
            return [self._vocabulary.sentinel_ids[number]]
        mask = self._vocabulary.special.mask
        assert mask is not None
        return [mask] * (num_tokens if self._each_token else 1)

    def target(self, masked: MaskedText) -> list[int]:
        """What a reader that writes is to write, without the end token: each span behind its sentinel; without
        sentinels the spans, a mask token between them."""
        written: list[int] = []
        for number, span in enumerate(masked.spans):
            written += (self.masks(number, 1) if self._vocabulary.sentinel_ids or number else []) + span
        return written


def token_range(text: str, offsets: Sequence[Bounds], start: int, end: int) -> range | None:
    """The tokens of the characters [start, end); None where a token reaches beyond them.

    Args:
        offsets: of all tokens of `text`, see `Vocabulary.offsets`; the white space before a word may be the word's.
    """
    inside = [place for place, (first, stop) in enumerate(offsets) if stop > start and first < end]
    # a token of white space alone, before the span, is the span's; behind it, the next word's
    while inside and text[slice(*offsets[inside[-1]])].isspace():
        inside.pop()
    if not inside:
        return None
    (first, _), (_, stop) = offsets[inside[0]], offsets[inside[-1]]
    if text[first:start].strip() or first > start or stop > end:
        return None
    return range(inside[0], inside[-1] + 1)


def occurrences(text: str, start: int, end: int) -> list[Bounds]:
    """Where the string of a span stands in a text as whole words: the span itself first, then the others in order."""
    wanted, found, place = text[start:end], [(start, end)], text.find(text[start:end])
    while place >= 0:
        stop = place + len(wanted)
        if (stop <= start or place >= end) and not _inside_word(text, place) and not _inside_word(text, stop):
            found.append((place, stop))
        place = text.find(wanted, stop)
    return found


def _inside_word(text: str, place: int) -> bool:
    return 0 < place < len(text) and text[place - 1].isalnum() and text[place].isalnum()


def _firsts(spans: Sequence[Sequence[Bounds]]) -> list[int]:
    """Where the first occurrence of each span stands among all occurrences."""
    places = [0]
    for occurrences in spans:
        places.append(places[-1] + len(occurrences))
    return places[:-1]
