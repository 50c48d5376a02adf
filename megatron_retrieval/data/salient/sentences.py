"""Texts to sentences with salient spans: the work of a worker process of the span builder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from megatron_retrieval.data.files.sentences import split_sentences
from megatron_retrieval.data.salient.masking import token_range
from megatron_retrieval.data.salient.spans import DATE, Span, find_dates, longest
from megatron_retrieval.data.salient.taggers import Tagger, TitledSentences
from megatron_retrieval.data.salient.wordings import MIN_TOKENS, Hashes, sentence_hashes, sentence_ids
from megatron_retrieval.data.stores.column_folder import EncodedColumn
from megatron_retrieval.data.stores.ragged import Ragged, Rows, token_dtype
from megatron_retrieval.tokenizers.vocabulary import Vocabulary


class RawText(NamedTuple):
    """What is read: light, since it crosses between processes.

    Attributes:
        row: of its passage, -1 for none.
        spans: in `text`, which is one sentence then; None: a tagger finds sentences and spans.
    """

    row: int
    title: str
    text: str
    spans: tuple[Span, ...] | None = None


@dataclass(frozen=True)
class SpanRules:
    """Which spans are kept.

    Attributes:
        types: others are left out.
        max_tokens: of a span, in the vocabulary of the evidence.
        dates: add the dates that the pattern finds.
        language: of the texts.
    """

    types: tuple[str, ...]
    max_tokens: int
    dates: bool
    language: str


@dataclass(frozen=True)
class FoundSpans:
    """The sentences with a span of some texts.

    Attributes:
        sentences: UTF-8 text.
        spans: start, end and number of the type of each span of a sentence.
        rows: [n] of their passages, -1 for none.
        hashes: [n, 2], see `sentence_hashes`.
        census: how many of what were seen, kept and left out.
        num_texts: that this comes from.
    """

    sentences: EncodedColumn
    spans: EncodedColumn
    rows: Rows
    hashes: Hashes
    census: Counter[str]
    num_texts: int


class SpanFinder:
    """Finds salient spans.

    Args:
        tagger: None where the spans are given.
        vocabulary: of the evidence.
    """

    def __init__(self, tagger: Tagger | None, vocabulary: Vocabulary, rules: SpanRules) -> None:
        self._tagger, self._vocabulary, self._rules = tagger, vocabulary, rules

    def find(self, texts: Sequence[RawText]) -> FoundSpans:
        """The sentences with a span."""
        census: Counter[str] = Counter(texts=len(texts))
        kept: list[tuple[int, str, list[Span], list[int]]] = []
        for text, sentences, spans in self._tagged(texts, census):
            census["sentences"] += len(sentences)
            ids = sentence_ids(self._vocabulary, sentences)
            for sentence, found, tokens in zip(sentences, spans, ids, strict=True):
                if len(tokens) < MIN_TOKENS:
                    census[f"sentence: fewer than {MIN_TOKENS} tokens"] += 1
                elif usable := self._usable(sentence, found, census):
                    kept.append((text.row, sentence, usable, tokens))
                else:
                    census["sentence: no span"] += 1
        census["sentences kept"] += len(kept)
        census.update(span.type for _, _, spans, _ in kept for span in spans)
        return self._encoded(kept, census, len(texts))

    def _tagged(
        self, texts: Sequence[RawText], census: Counter[str]
    ) -> list[tuple[RawText, Sequence[str], list[list[Span]]]]:
        """Every text with its sentences and what was found in each."""
        if self._tagger is None:
            return [(text, (text.text,), [list(text.spans or ())]) for text in texts]
        cut = partial(split_sentences, language=self._rules.language)
        titled = [TitledSentences(" ".join(text.title.split()), tuple(cut(text.text))) for text in texts]
        found = self._tagger.tag(titled, census)
        return [(text, own.sentences, spans) for text, own, spans in zip(texts, titled, found, strict=True)]

    def _usable(self, sentence: str, found: Sequence[Span], census: Counter[str]) -> list[Span]:
        """The spans that can be masked, dates included."""
        dates = find_dates(sentence) if self._rules.dates and DATE in self._rules.types else []
        spans = [span for span in found if span.type in self._rules.types]
        if len(spans) < len(found):
            census["span: type left out"] += len(found) - len(spans)
        union = longest(spans, dates)
        if not union:
            return []
        offsets, kept = self._vocabulary.offsets(sentence), []
        for span in union:
            tokens = token_range(sentence, offsets, span.start, span.end)
            if tokens is None:
                census["span: not on token boundaries"] += 1
            elif len(tokens) > self._rules.max_tokens:
                census[f"span: more than {self._rules.max_tokens} tokens"] += 1
            elif not any(map(str.isalnum, sentence[: span.start] + sentence[span.end :])):
                census["span: the whole sentence"] += 1
            else:
                kept.append(span)
        return kept

    def _encoded(
        self, kept: Sequence[tuple[int, str, list[Span], list[int]]], census: Counter[str], num_texts: int
    ) -> FoundSpans:
        number = {name: place for place, name in enumerate(self._rules.types)}
        texts = [sentence.encode() for _, sentence, _, _ in kept]
        spans = [(span.start, span.end, number[span.type]) for _, _, own, _ in kept for span in own]
        tokens = Ragged.from_sequences([ids for *_, ids in kept], token_dtype(self._vocabulary.vocab_size))
        lengths = np.array([len(text) for text in texts], np.int64)
        return FoundSpans(
            EncodedColumn(np.frombuffer(b"".join(texts), np.uint8), lengths),
            EncodedColumn(
                np.array(spans, "<i4").reshape(-1), np.array([3 * len(own) for _, _, own, _ in kept], np.int64)
            ),
            np.array([row for row, *_ in kept], "<i8"),
            sentence_hashes(tokens),
            census,
            num_texts,
        )


def find_spans(finder: SpanFinder, texts: Sequence[RawText]) -> FoundSpans:
    """A task of a worker process."""
    return finder.find(texts)
