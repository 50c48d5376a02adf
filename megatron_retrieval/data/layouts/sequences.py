"""How questions and passages become token sequences: the one layout that training, embedding and evaluation share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.config.checks import Bounds, Checked
from megatron_retrieval.config.parser import from_flat_dict
from megatron_retrieval.data.stores.ragged import Ragged, Rows, tokenize
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.tokenizers.vocabulary import SpecialIds, Vocabulary
from megatron_retrieval.types.extractive import ExtractivePassages
from megatron_retrieval.types.tokens import TokenBatch

PassageFormat = Literal["title-sep-text", "title-text"]
SeqLength = Annotated[int, Bounds(least=3, why="two special tokens and one more")]


@dataclass(frozen=True, kw_only=True)
class TextSizesConfig(Checked):
    """Form and lengths of questions and passages."""

    passage_format: PassageFormat = "title-sep-text"
    """title-sep-text: [CLS] title [SEP] text [SEP], as DPR; title-text: [CLS] title text [SEP], as most
    sentence-transformers checkpoints."""
    query_seq_length: SeqLength = 64
    """Longest question, in tokens with [CLS] and [SEP]."""
    retriever_seq_length: SeqLength = 256
    """Longest passage, in tokens with title and special tokens."""


@dataclass(frozen=True, kw_only=True)
class TextFormatConfig(TextSizesConfig):
    """Layout of questions and passages."""

    query_prefix: str = ""
    """Text before every question, for encoders that were trained with one (E5: "query: ")."""
    passage_prefix: str = ""
    """Text before the title of every passage (E5: "passage: ")."""

    @property
    def query_lead(self) -> tuple[int, ...]:
        """Token ids between what begins a question's sequence and its prefix."""
        return ()

    @property
    def passage_lead(self) -> tuple[int, ...]:
        """Likewise a passage's."""
        return ()


#: the beginning of a text, to try a prefix with
_PROBE = "a"
_PREFIXES = {"query-prefix": "", "passage-prefix": ""}


def without_empty_prefixes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest keeps of settings: an encoder without a prefix is named as it was before there were prefixes."""
    return {name: value for name, value in settings.items() if value or name not in _PREFIXES}


def read_text_format(settings: Mapping[str, Any]) -> TextFormatConfig:
    """The layout out of a manifest's settings; one that names no prefix has none.

    Raises:
        KeyError: a setting is missing.
    """
    return from_flat_dict(TextFormatConfig, {**_PREFIXES, **settings})


def prefix_ids(prefix: str, vocabulary: Vocabulary) -> list[int]:
    """The token ids of a prefix, which stand before those of any text.

    Raises:
        ConfigError: it would run into the text after it: the tokens of the two together are others.
    """
    if not prefix:
        return []
    # the space before the text is the text's, where it is a token's part at all
    own, probe, together = vocabulary.encode([prefix.rstrip(), _PROBE, prefix + _PROBE])
    if own + probe != together:
        raise ConfigError(f"the prefix {prefix!r} runs into the text after it; end it with a space or a colon.")
    return own


def lay_out_questions(questions: Ragged, vocabulary: Vocabulary, text_format: TextFormatConfig) -> TokenBatch:
    """The sequences of whole questions, with the format's prefix; see `format_questions`."""
    length, special = text_format.query_seq_length, vocabulary.special
    lead = text_format.query_lead
    if vocabulary.is_separable:
        prefix = [*lead, *prefix_ids(text_format.query_prefix, vocabulary)]
        return format_questions(_cut(questions, length), special, length, prefix)
    return format_questions(_joined(text_format.query_prefix, [questions], vocabulary), special, length, lead)


def lay_out_passages(
    titles: Ragged, texts: Ragged, vocabulary: Vocabulary, text_format: TextFormatConfig
) -> TokenBatch:
    """The sequences of whole passages, with the format's prefix; see `format_passages`."""
    length, passage_format = text_format.retriever_seq_length, text_format.passage_format
    prefix: Sequence[int] = text_format.passage_lead
    if vocabulary.is_separable:
        titles, texts = _cut(titles, length), _cut(texts, length)
        prefix = [*prefix, *prefix_ids(text_format.passage_prefix, vocabulary)]
    elif passage_format == "title-text":
        titles, texts = _joined(text_format.passage_prefix, [titles, texts], vocabulary), _nothing(titles)
    else:
        titles = _joined(text_format.passage_prefix, [titles], vocabulary)
    return format_passages(
        titles, texts, vocabulary.special, seq_length=length, passage_format=passage_format, prefix=prefix
    )


def at_the_beginning(texts: Ragged, vocabulary: Vocabulary) -> Ragged:
    """The ids of texts with nothing before them, given those that they have behind a space."""
    if vocabulary.is_separable:
        return texts
    decoded = vocabulary.decode([texts[row].tolist() for row in range(len(texts))])
    # of a character that a cut went through, the rest is left out
    return tokenize(vocabulary, [text.removeprefix(" ").rstrip("\ufffd") for text in decoded])


def _cut(column: Ragged, length: int) -> Ragged:
    return column.take(np.arange(len(column)), length)


def _nothing(column: Ragged) -> Ragged:
    return Ragged(column.values[:0], np.zeros(len(column) + 1, np.int64))


def _joined(prefix: str, columns: Sequence[Ragged], vocabulary: Vocabulary) -> Ragged:
    """The ids of the prefix and, behind it, each row's texts joined by spaces, given the ids of each text."""
    texts = [vocabulary.decode([column[row].tolist() for row in range(len(column))]) for column in columns]
    return tokenize(vocabulary, [prefix + " ".join(filter(None, row)) for row in zip(*texts, strict=True)])


def format_questions(questions: Ragged, special: SpecialIds, seq_length: int, prefix: Sequence[int] = ()) -> TokenBatch:
    """[CLS] prefix question [SEP], at most `seq_length` tokens."""
    return _frame([questions], special, seq_length, separated=False, prefix=prefix)


def format_passages(
    titles: Ragged,
    texts: Ragged,
    special: SpecialIds,
    *,
    seq_length: int,
    passage_format: PassageFormat,
    prefix: Sequence[int] = (),
) -> TokenBatch:
    """Lay out passages from the ids of their titles and texts, at most `seq_length` tokens each.

    Cutting takes from the end and keeps the final [SEP]. WordPiece splits at white space first, so the ids of
    title and text in turn are those of the two joined by a space.
    """
    return _frame([titles, texts], special, seq_length, separated=passage_format == "title-sep-text", prefix=prefix)


def format_question_and_passage(
    questions: Ragged, titles: Ragged, texts: Ragged, special: SpecialIds, seq_length: int
) -> ExtractivePassages:
    """[CLS] question [SEP] title [SEP] text [SEP], at most `seq_length` tokens; cutting takes from the end."""
    tokens = _frame([questions, titles, texts], special, seq_length, separated=True)
    passage_starts = np.minimum(_start_of_second(questions, special), seq_length)
    text_starts = np.minimum(passage_starts + titles.lengths + special.num_between, seq_length)
    return ExtractivePassages(tokens, torch.from_numpy(passage_starts), torch.from_numpy(text_starts))


def format_question_and_text(
    questions: Ragged, texts: Ragged, special: SpecialIds, seq_length: int
) -> ExtractivePassages:
    """[CLS] question [SEP] text [SEP], at most `seq_length` tokens; cutting takes from the end."""
    tokens = _frame([questions, texts], special, seq_length, separated=True)
    starts = torch.from_numpy(np.minimum(_start_of_second(questions, special), seq_length))
    return ExtractivePassages(tokens, starts, starts)


def join_segments(segments: Sequence[Ragged], seq_length: int, *, end_id: int, pad_id: int) -> TokenBatch:
    """The segments of each row one after another and the end token; at most `seq_length` tokens, cut before the end
    token."""
    starts = [np.zeros(len(segments[0]), np.int64)]
    for segment in segments:
        starts.append(starts[-1] + segment.lengths)
    final = np.minimum(starts[-1], seq_length - 1)
    ids = np.full((len(final), int(final.max(initial=0)) + 1), pad_id, np.int64)
    for segment, start in zip(segments, starts, strict=False):
        _place(ids, segment, start, seq_length - 1)
    ids[np.arange(len(final)), final] = end_id
    return TokenBatch(torch.from_numpy(ids), torch.from_numpy(final + 1))


def label_rows(sequences: Ragged, num_rows: int, end_id: int) -> Tensor:
    """[num_rows, L] int64, the sequences with their end tokens; -1 behind them and in rows beyond them."""
    lengths = sequences.lengths
    labels = np.full((num_rows, int(lengths.max(initial=0)) + 1), -1, np.int64)
    _place(labels, sequences, np.zeros(len(sequences), np.int64), labels.shape[1])
    labels[np.arange(len(sequences)), lengths] = end_id
    return torch.from_numpy(labels)


def with_fillers(batch: TokenBatch, num_rows: int, special: SpecialIds) -> TokenBatch:
    """The batch with rows [CLS] [SEP] added until there are `num_rows`."""
    given, width = batch.ids.shape
    length = len(special.frame)
    ids = batch.ids.new_full((num_rows, max(width, length)), special.pad)
    ids[:given, :width] = batch.ids
    ids[given:, :length] = ids.new_tensor(special.frame)
    return TokenBatch(ids, torch.cat([batch.lengths, batch.lengths.new_full((num_rows - given,), length)]))


def _start_of_second(first: Ragged, special: SpecialIds) -> Rows:
    """[n], the column where the text behind `first` begins."""
    return len(special.frame) - 1 + first.lengths + special.num_between


def _frame(
    segments: Sequence[Ragged], special: SpecialIds, seq_length: int, *, separated: bool, prefix: Sequence[int] = ()
) -> TokenBatch:
    """[CLS] prefix segments [SEP], with a further [SEP] between segments where `separated`; no [CLS] where the
    vocabulary has nothing to begin with."""
    gap = special.num_between if separated else 0
    last = seq_length - 1  # the latest column of the final [SEP]
    first = len(special.frame) - 1
    starts = [np.full(len(segments[0]), first + len(prefix))]
    for segment in segments:
        starts.append(starts[-1] + segment.lengths + gap)
    final = np.minimum(starts[-1] - gap, last)
    ids = np.full((len(final), int(final.max(initial=0)) + 1), special.pad, np.int64)
    if special.begin is not None:
        ids[:, 0] = special.begin
    lead = ids[:, first : min(first + len(prefix), last)]
    lead[:] = prefix[: lead.shape[1]]
    for segment, start in zip(segments, starts, strict=False):
        _place(ids, segment, start, last)
    rows = np.arange(len(final))
    if separated:
        for start in starts[1:-1]:
            for column in (start - place for place in range(1, gap + 1)):
                inside = column < final
                ids[rows[inside], column[inside]] = special.end
    ids[rows, final] = special.end
    return TokenBatch(torch.from_numpy(ids), torch.from_numpy(final + 1))


def _place(ids: Rows, segment: Ragged, starts: Rows, end: int) -> None:
    """Write sequence i into row i of `ids` from column `starts[i]`, nothing at or after column `end`."""
    lengths = segment.lengths
    columns = np.arange(len(segment.values)) + np.repeat(starts - segment.offsets[:-1], lengths)
    inside = columns < end
    ids[np.repeat(np.arange(len(segment)), lengths)[inside], columns[inside]] = segment.values[inside]
