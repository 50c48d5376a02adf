"""Layouts equal Hugging Face's, and cutting keeps the frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizerFast

from megatron_retrieval.data.layouts.sequences import (
    PassageFormat,
    TextFormatConfig,
    format_passages,
    format_question_and_passage,
    format_questions,
    with_fillers,
)
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.tokenizers.vocabulary import SpecialIds
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.types.tokens import TokenBatch

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "city", "in", "##s", "a", "(", ")", "北"]
TITLES = ["river", "", "city (a)", "cities in a"]
TEXTS = ["a river in a city " * 3, "a", "in", "rivers 北 in"]


@pytest.fixture
def vocab_file(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCABULARY), encoding="utf-8")
    return path


def _ragged(tokenizer: WordPieceTokenizer, texts: list[str]) -> Ragged:
    return Ragged.from_sequences(tokenizer.encode(texts), np.uint16)


def _rows(batch: TokenBatch) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(batch.ids, batch.lengths, strict=True)]


@pytest.mark.parametrize("seq_length", [64, 9])
@pytest.mark.parametrize("passage_format", ["title-sep-text", "title-text"])
def test_passages_equal_hugging_face(vocab_file: Path, passage_format: PassageFormat, seq_length: int) -> None:
    tokenizer, reference = WordPieceTokenizer(vocab_file), BertTokenizerFast(vocab=str(vocab_file))
    settings = {"truncation": "only_second", "max_length": seq_length}
    if passage_format == "title-sep-text":
        expected = [reference(title, text, **settings).input_ids for title, text in zip(TITLES, TEXTS, strict=True)]
    else:
        settings["truncation"] = "longest_first"
        expected = [
            reference(f"{title} {text}", **settings).input_ids for title, text in zip(TITLES, TEXTS, strict=True)
        ]
    titles, texts = _ragged(tokenizer, TITLES), _ragged(tokenizer, TEXTS)
    batch = format_passages(titles, texts, tokenizer.special, seq_length=seq_length, passage_format=passage_format)
    assert _rows(batch) == expected
    padding = np.arange(batch.ids.shape[1]) >= batch.lengths.numpy()[:, None]
    assert (batch.ids.numpy()[padding] == tokenizer.special.pad).all()


@pytest.mark.parametrize("seq_length", [3, 4, 5, 6, 7])
def test_long_titles_keep_the_frame(vocab_file: Path, seq_length: int) -> None:
    tokenizer = WordPieceTokenizer(vocab_file)
    title, text = tokenizer.encode(["city in a", "river"])
    whole = [tokenizer.special.begin, *title, tokenizer.special.end, *text]
    batch = format_passages(
        Ragged.from_sequences([title], np.uint16),
        Ragged.from_sequences([text], np.uint16),
        tokenizer.special,
        seq_length=seq_length,
        passage_format="title-sep-text",
    )
    assert _rows(batch) == [[*whole[: seq_length - 1], tokenizer.special.end]]


@pytest.mark.parametrize("seq_length", [64, 4])
def test_questions_equal_hugging_face(vocab_file: Path, seq_length: int) -> None:
    tokenizer, reference = WordPieceTokenizer(vocab_file), BertTokenizerFast(vocab=str(vocab_file))
    batch = format_questions(_ragged(tokenizer, TEXTS), tokenizer.special, seq_length)
    assert _rows(batch) == reference(TEXTS, truncation=True, max_length=seq_length).input_ids


def test_a_vocabulary_without_a_begin_token_frames_with_its_end_alone() -> None:
    special = SpecialIds(begin=None, end=1, pad=0)
    titles, texts = (Ragged.from_sequences(rows, np.uint16) for rows in ([[5, 6], []], [[7], [8, 9, 10]]))
    assert _rows(format_questions(texts, special, 3)) == [[7, 1], [8, 9, 1]]
    for passage_format, expected in (
        ("title-sep-text", [[5, 6, 1, 7, 1], [1, 8, 9, 10, 1]]),
        ("title-text", [[5, 6, 7, 1], [8, 9, 10, 1]]),
    ):
        assert _rows(format_passages(titles, texts, special, seq_length=9, passage_format=passage_format)) == expected
    read = format_question_and_passage(texts, titles, texts, special, 12)
    assert _rows(read.tokens) == [[7, 1, 5, 6, 1, 7, 1], [8, 9, 10, 1, 1, 8, 9, 10, 1]]
    assert (read.passage_starts.tolist(), read.text_starts.tolist()) == ([2, 4], [5, 5])
    filled = with_fillers(format_questions(texts, special, 3), 3, special)
    assert _rows(filled) == [[7, 1], [8, 9, 1], [1]]


def test_ragged_take_and_concatenate() -> None:
    ragged = Ragged.from_sequences([[1, 2, 3], [], [4], [5, 6]], np.int32)
    taken = ragged.take(np.array([3, 0, 1, 0]), max_length=2)
    assert [row.tolist() for row in taken] == [[5, 6], [1, 2], [], [1, 2]]
    both = Ragged.concatenate([taken, ragged])
    assert [both[row].tolist() for row in (0, 4, 7)] == [[5, 6], [1, 2, 3], [5, 6]]


def test_too_short_a_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match="--query-seq-length"):
        TextFormatConfig(query_seq_length=2)
