"""Masked sentences as questions: which passage helps to recover the span? (Guu et al. 2020, arXiv 2002.08909, section
3.4; Sachan et al. 2021, arXiv 2101.00408, section 2.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.examples.batches import Share
from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.layouts.sequences import TextFormatConfig, format_questions, prefix_ids
from megatron_retrieval.data.salient.masking import MaskedText, TextMasker, occurrences
from megatron_retrieval.data.salient.spans import Span
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Ragged, Rows
from megatron_retrieval.data.stores.salient import SpanStore
from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils.seeds import generator

#: sentences that are tried in the place of one whose spans cannot be masked
_MAX_TRIES = 1000


@dataclass(kw_only=True, frozen=True)
class MaskedSentencesConfig(Checked):
    """Sentences with salient spans, and what of them is masked."""

    spans: Path = field(metadata=INPUT)
    """Folder of the salient spans (build spans), built with this evidence."""
    masked_spans: Literal["one", "all"] = "one"
    """one: a span of each sentence, drawn anew in every epoch; all: every span at once, for readers that write."""
    max_span_length: PositiveInt = 10
    """Longest span to mask, in tokens of the retriever's vocabulary."""


@dataclass(frozen=True)
class MaskedSentence:
    """A sentence with what is hidden in it.

    Attributes:
        row: of the sentence in the store.
        spans: that are hidden.
        query: ids of the retriever's vocabulary.
        question: ids of the reader's vocabulary.
    """

    row: int
    spans: tuple[Span, ...]
    query: MaskedText
    question: MaskedText


@dataclass(frozen=True)
class Choice:
    """What may be hidden in a sentence.

    Attributes:
        spans: that it is; none where it is no span of the store.
        places: of each, the characters [start, end) of all occurrences, the one to recover first.
    """

    spans: tuple[Span, ...]
    places: Sequence[Sequence[tuple[int, int]]]


class MaskedSentences:
    """The sentences of a span store, each with hidden spans and without the passages that hold it; a BatchSource.

    Of a sentence, the first of its spans in an order that is named by (seed, epoch, position) is hidden, which begins
    and ends with tokens of both vocabularies, is short enough, and whose mask is within the part that retriever and
    reader see. Has it none, the sentence behind it in the store takes its place.

    Args:
        retriever: vocabulary.
        reader: vocabulary.
        text_format: layout of questions for the retriever.
        question_seq_length: tokens of a question that the reader sees.
        seed: of the run.

    Raises:
        ConfigError: a vocabulary has nothing to mask with.
        MismatchError: the spans were built with other evidence.
    """

    #: as many masks as a span has tokens, in vocabularies without sentinels
    each_token: ClassVar = False

    def __init__(
        self,
        config: MaskedSentencesConfig,
        evidence: EvidenceStore,
        *,
        retriever: Vocabulary,
        reader: Vocabulary,
        text_format: TextFormatConfig,
        question_seq_length: int,
        seed: int,
    ) -> None:
        self.store = SpanStore(config.spans)
        self.store.require_evidence(evidence)
        self._config, self._seed = config, seed
        self._special = retriever.special
        self._query_masker, self.question_masker = (
            TextMasker(vocabulary, each_token=self.each_token) for vocabulary in (retriever, reader)
        )
        self._prefix = prefix_ids(text_format.query_prefix, retriever)
        self._format, self._question_seq_length = text_format, question_seq_length
        self._query_room = text_format.query_seq_length - len(retriever.special.frame) - len(self._prefix)

    def __len__(self) -> int:
        return len(self.store)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> AskedBatch:
        """See BatchSource; a rank has as many slots as examples, or one with the batch's first example as a filler."""
        share = Share.of(len(indices), dp_rank, dp_size)
        own = list(indices[share.own]) or list(indices[:1])
        drawn = [self.draw(row, epoch, first_position + share.first + place) for place, row in enumerate(own)]
        return self.asked(drawn, len(indices), is_filler=share.num_real == 0)

    def asked(self, sentences: Sequence[MaskedSentence], num_questions: int, *, is_filler: bool = False) -> AskedBatch:
        """Masked sentences as a batch."""
        types = [self.store.types.index(sentence.spans[0].type) for sentence in sentences if sentence.spans]
        return AskedBatch(
            format_questions(
                _ragged([sentence.query.ids for sentence in sentences]),
                self._special,
                self._format.query_seq_length,
                self._prefix,
            ),
            _ragged([sentence.question.ids for sentence in sentences]),
            _ragged([self.target(sentence.question) for sentence in sentences]),
            tuple(_ragged(sentence.question.spans) for sentence in sentences),
            self._excluded([sentence.row for sentence in sentences]),
            num_questions,
            is_filler,
            groups=torch.tensor(types) if types else None,
        )

    def draw(self, row: int, epoch: int, position: int) -> MaskedSentence:
        """The example at a place of the epoch, which is to be made of the sentence `row`.

        Raises:
            DataError: neither it nor any of the next sentences can be masked.
        """
        for tried in range(min(_MAX_TRIES, len(self))):
            candidate = (row + tried) % len(self)
            text, spans = self.store.sentence(candidate)
            random = generator(self._seed, "salient-span", epoch, position)
            for choice in self.choices(text, spans, random):
                if (masked := self.masked(candidate, text, choice)) is not None:
                    return masked
        problem = f"none of {min(_MAX_TRIES, len(self)):,} sentences has a span that fits both vocabularies and lengths"
        raise DataError(self.store.folder, problem, hint="Raise --query-seq-length and --question-seq-length.")

    def choices(self, text: str, spans: Sequence[Span], random: np.random.Generator) -> Iterator[Choice]:
        """What may be hidden in a sentence, the best first."""
        order = random.permutation(len(spans)).tolist()
        for chosen in [[spans[place]] for place in order] if self._config.masked_spans == "one" else [spans]:
            yield Choice(tuple(chosen), [occurrences(text, span.start, span.end) for span in chosen])

    def target(self, question: MaskedText) -> list[int]:
        """What the reader learns to say, without an end token."""
        return self.question_masker.target(question)

    def masked(self, row: int, text: str, choice: Choice) -> MaskedSentence | None:
        """None where the choice cannot be masked."""
        places = choice.places
        query = self._query_masker.mask(text, places)
        if query is None or query.end > self._query_room:
            return None
        if max(map(len, query.spans), default=0) > self._config.max_span_length:
            return None
        question = self.question_masker.mask(text, places)
        if question is None or question.end > self._question_seq_length:
            return None
        return MaskedSentence(row, choice.spans, query, question)

    def _excluded(self, rows: Sequence[int]) -> Tensor:
        """[n, E] rows of the evidence that hold the sentences, -1 behind each one's own."""
        found = [self.store.holders(row) for row in rows]
        excluded: Rows = np.full((len(rows), max(1, *map(len, found))), -1, np.int64)
        for place, own in enumerate(found):
            excluded[place, : len(own)] = own
        return torch.from_numpy(excluded)


def _ragged(sequences: Sequence[Sequence[int]]) -> Ragged:
    return Ragged.from_sequences(sequences, np.int32)
