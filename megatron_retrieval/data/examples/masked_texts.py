"""Texts in which tokens are hidden, for REALM's masked language model: salient spans, or random spans and random tokens
as in its ablation (Guu et al. 2020, arXiv 2002.08909, section 4.5)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from megatron_retrieval.config.checks import Bounds, PositiveInt
from megatron_retrieval.data.examples.masked_sentences import (
    Choice,
    MaskedSentence,
    MaskedSentences,
    MaskedSentencesConfig,
)
from megatron_retrieval.data.salient.masking import MaskedText
from megatron_retrieval.data.salient.spans import Span
from megatron_retrieval.tokenizers.vocabulary import Vocabulary

#: random draws from a sentence before the next one takes its place
_DRAWS = 10
#: of the geometric distribution of the words in a random span (SpanBERT, arXiv 1907.10529, section 3.1)
_STOP = 0.2


@dataclass(kw_only=True, frozen=True)
class MaskedTextsConfig(MaskedSentencesConfig):
    """Sentences, and what of them is masked."""

    masking: Literal["salient", "spans", "tokens"] = "salient"
    """salient: names and dates; spans: words in a row, at random; tokens: single tokens at random."""
    mask_prob: Annotated[float, Bounds(above=0, below=1)] = 0.15
    """Share of a sentence's tokens to mask (--masking tokens)."""
    max_masked_tokens: PositiveInt = 10
    """Most tokens to mask in a sentence; of a span with more none is masked."""


class MaskedTexts(MaskedSentences):
    """See MaskedSentences; a mask for each token that is hidden, in every occurrence of a span, and all of them are to
    be predicted."""

    each_token = True

    def __init__(self, config: MaskedTextsConfig, *args: Any, reader: Vocabulary, **settings: Any) -> None:
        super().__init__(config, *args, reader=reader, **settings)
        self._settings, self._reader = config, reader

    def choices(self, text: str, spans: Sequence[Span], random: np.random.Generator) -> Iterator[Choice]:
        """See MaskedSentences."""
        if self._settings.masking == "salient":
            yield from super().choices(text, spans, random)
            return
        draw = self._tokens if self._settings.masking == "tokens" else self._words
        for _ in range(_DRAWS):
            yield Choice((), draw(text, random))

    def masked(self, row: int, text: str, choice: Choice) -> MaskedSentence | None:
        """See MaskedSentences."""
        found = super().masked(row, text, choice)
        hidden = [] if found is None else found.question.hidden
        return found if 0 < len(hidden) <= self._settings.max_masked_tokens else None

    def target(self, question: MaskedText) -> list[int]:
        """See MaskedSentences."""
        return question.hidden

    def _tokens(self, text: str, random: np.random.Generator) -> list[list[tuple[int, int]]]:
        """Of so many tokens."""
        offsets = self._reader.offsets(text)
        wanted = max(1, min(self._settings.max_masked_tokens, round(self._settings.mask_prob * len(offsets))))
        chosen = np.sort(random.permutation(len(offsets))[:wanted])
        return [[offsets[place]] for place in chosen.tolist()]

    def _words(self, text: str, random: np.random.Generator) -> list[list[tuple[int, int]]]:
        """Of words in a row."""
        words = [word.span() for word in re.finditer(r"\w+", text)]
        if not words:
            return []
        first = int(random.integers(len(words)))
        most = min(int(random.geometric(_STOP)), self._settings.max_masked_tokens)  # a word has a token at least
        last = min(first + most, len(words)) - 1
        return [[(words[first][0], words[last][1])]]
