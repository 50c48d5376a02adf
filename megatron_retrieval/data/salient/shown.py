"""Masked sentences for a person to judge."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_retrieval.data.salient.masking import occurrences
from megatron_retrieval.data.salient.spans import Span
from megatron_retrieval.data.stores.evidence_sample import spread_rows
from megatron_retrieval.data.stores.salient import SpanStore
from megatron_retrieval.utils.seeds import generator

MASK = "[MASK]"


def masked_words(sentence: str, span: Span) -> str:
    """The sentence with the span hidden wherever it stands."""
    parts, done = [], 0
    for start, end in sorted(occurrences(sentence, span.start, span.end)):
        parts += [sentence[done:start], MASK]
        done = end
    return "".join([*parts, sentence[done:]])


def shown_sentences(store: SpanStore, number: int) -> Iterator[tuple[str, Span, str]]:
    """(masked sentence, span, what it hides) of evenly spaced sentences, with one of their spans each."""
    for row in spread_rows(len(store), number).tolist():
        sentence, spans = store.sentence(row)
        span = spans[int(generator(0, "shown-span", row).integers(len(spans)))]
        yield masked_words(sentence, span), span, sentence[span.start : span.end]
