"""Training examples of extractive readers: where answers stand, what is drawn, what is left out and said so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_retrieval.data.examples.answer_spans import AnswerFinder
from megatron_retrieval.data.examples.extractive import ExtractiveDataset
from megatron_retrieval.data.examples.extractive_examples import ExtractiveDataConfig
from megatron_retrieval.data.examples.passage_tokens import PassageTokens
from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig, ReaderTrainingDataConfig
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.testing.tiny_byte_bpe import write_roberta_bpe
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.types.extractive import ExtractiveBatch
from megatron_retrieval.types.questions import Passage

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##s", ".", "q", "t", *(f"n{n}" for n in range(6))]
LAYOUT = ExtractiveFormatConfig(question_seq_length=3, reader_seq_length=16)


@pytest.fixture
def tokenizer(tmp_path: Path) -> WordPieceTokenizer:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return WordPieceTokenizer(tmp_path / "vocab.txt")


def dataset(
    tokenizer: WordPieceTokenizer, records: list[dict[str, Any]], layout: ExtractiveFormatConfig = LAYOUT, **config: Any
) -> ExtractiveDataset:
    path = tokenizer.path.parent / "data.json"
    path.write_text(json.dumps(records))
    data = ReaderTrainingDataConfig(train_data=(str(path),))
    draw = ExtractiveDataConfig(**{"num_train_passages": 3, **config})
    return ExtractiveDataset(data, draw, layout, tokenizer, max_answer_length=2, seed=1)


def record(question: str, answers: list[str], *texts: str) -> dict[str, Any]:
    return {"question": question, "answers": answers, "ctxs": [{"title": "t", "text": text} for text in texts]}


def rows(batch: ExtractiveBatch, tokenizer: WordPieceTokenizer) -> list[str]:
    words = tokenizer.path.read_text().split()
    tokens = batch.passages.tokens
    return [
        " ".join(words[i] for i in ids[:length])
        for ids, length in zip(tokens.ids.tolist(), tokens.lengths.tolist(), strict=True)
    ]


def test_occurrences_are_whole_words(tokenizer: WordPieceTokenizer) -> None:
    finder = AnswerFinder(tokenizer, np.dtype(np.uint16))
    text, *answers = tokenizer.encode(["a b as a. A B ab", "a", "a b", "as"])
    needles = [needle for answer in answers for needle in finder.needles(answer)]
    (haystack,) = finder.needles(text)
    # a b a ##s a . a b [UNK]
    assert finder.spans(haystack, needles[:1]) == [(0, 0), (4, 4), (6, 6)]
    assert finder.spans(haystack, needles[1:]) == [(0, 1), (2, 3), (6, 7)]
    assert finder.spans(haystack, [needles[0], needles[0]]) == [(0, 0), (4, 4), (6, 6)]


def test_occurrences_where_ids_depend_on_what_stands_before(tmp_path: Path) -> None:
    vocabulary = ByteBpeTokenizer(write_roberta_bpe(tmp_path))
    text = "Paris, not Parisian (Paris) of “Paris” nor 1Paris Paris"
    finder = AnswerFinder(vocabulary, np.dtype(np.uint16))
    ids, answer = vocabulary.encode([text, "Paris"])
    offsets = vocabulary.offsets(text)
    spans = finder.spans(np.asarray(ids, np.uint16).tobytes(), finder.needles(answer))
    places = [text[: offsets[last][1]].rindex("Paris") for _, last in spans]
    assert [text[offsets[first][0] : offsets[last][1]].strip() for first, last in spans] == ["Paris"] * 4
    assert places == [0, text.index("(Paris)") + 1, text.index("“Paris”") + 1, len(text) - 5]


def test_bytes_that_lie_across_two_ids_are_no_occurrence(tokenizer: WordPieceTokenizer) -> None:
    finder = AnswerFinder(tokenizer, np.dtype("<u2"))
    text = np.array([0x0100, 0x0002], "<u2").tobytes()  # 00 01 02 00
    assert finder.spans(text, [np.array([0x0201], "<u2").tobytes()]) == []


def test_passages_are_numbered_once_and_kept_as_ids(tokenizer: WordPieceTokenizer) -> None:
    passages = PassageTokens(tokenizer.encode, np.uint16)
    first, second, third = Passage("1", "t", "a"), Passage("2", "t", "b"), Passage("3", "", "ta")
    assert passages.add([first, second, first]) == [0, 1, 0]
    assert passages.add([third, second, Passage("9", "t", "a")]) == [2, 1, 0]
    assert len(passages) == 3
    titles, texts = passages.titles.finish(), passages.texts.finish()
    assert [texts[row].tolist() for row in range(2)] == tokenizer.encode(["a", "b"])
    assert titles.lengths.tolist() == [1, 1, 0]


def test_a_batch(tokenizer: WordPieceTokenizer) -> None:
    records = [
        record("q n0 n1 n2", ["c", "a b"], "d", "c a b c.", "e", "f"),
        record("q", ["g"], "g", "h"),
    ]
    batch = dataset(tokenizer, records, passage_draw="first").batch([0, 1], 0, 0)
    assert rows(batch, tokenizer) == [
        "[CLS] q n0 n1 [SEP] t [SEP] c a b c . [SEP]",
        "[CLS] q n0 n1 [SEP] t [SEP] d [SEP]",
        "[CLS] q n0 n1 [SEP] t [SEP] e [SEP]",
        "[CLS] q [SEP] t [SEP] g [SEP]",
        "[CLS] q [SEP] t [SEP] h [SEP]",
        rows(batch, tokenizer)[5],  # a filler
    ]
    assert batch.is_real.tolist() == [[True] * 3, [True, True, False]]
    assert batch.spans.tolist() == [[[7, 7], [8, 9], [10, 10]], [[5, 5], [-1, -1], [-1, -1]]]
    assert batch.num_questions == 2
    passages = batch.passages
    assert passages.passage_starts is not None
    assert passages.passage_starts.tolist()[::3] == [5, 3]
    assert passages.text_starts.tolist()[::3] == [7, 5]
    assert passages.is_text[3].nonzero().flatten().tolist() == [5]
    segments = passages.segments
    assert segments is not None
    assert segments[0, :8].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    plain = dataset(tokenizer, records, ExtractiveFormatConfig(reader_seq_length=72, passage_segment=False))
    assert plain.batch([0], 0, 0).passages.segments is None


def test_shares_are_those_of_the_whole_batch(tokenizer: WordPieceTokenizer) -> None:
    records = [record("q", [word], *"abcdefgh", f"{word} n0", f"n1 {word}") for word in "abc"]
    data = dataset(tokenizer, records)
    whole = data.batch([2, 0, 1], 1, 4)
    shares = [data.batch([2, 0, 1], 1, 4, rank, 2) for rank in range(2)]
    joined = [row for share in shares for row in rows(share, tokenizer)]
    assert joined[: len(rows(whole, tokenizer))] == rows(whole, tokenizer)
    assert torch.cat([share.is_real for share in shares]).tolist() == [*whole.is_real.tolist(), [False] * 3]
    assert {share.num_questions for share in shares} == {3}
    assert (shares[1].spans[1] == -1).all()


def test_draws_change_with_the_epoch_and_cover_everything(tokenizer: WordPieceTokenizer) -> None:
    data = dataset(tokenizer, [record("q", ["a"], "a", "n0 a", "b", "c", "d", "e")])
    drawn = [rows(data.batch([0], epoch, 0), tokenizer) for epoch in range(40)]
    assert drawn[3] == rows(data.batch([0], 3, 0), tokenizer)
    assert len({row for batch in drawn for row in batch[:1]}) == 2
    assert len({row for batch in drawn for row in batch[1:]}) == 4
    assert all(len(set(batch)) == 3 for batch in drawn)


def test_what_cannot_be_learned_is_left_out_and_said(
    tokenizer: WordPieceTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    beyond = "n0 n1 n2 n3 n4 n5 n0 n1 n2 n3 a"  # the answer stands where the text is cut off
    records = [
        record("q", ["a"], "a", "b"),
        record("q", ["a"], "b", beyond),
        record("q", ["c"]),
        record("q", [], "a"),
        record("q", ["a b c", "d"], "a b c", "d", "e"),  # the long answer's passage is neither positive nor negative
    ]
    logger = logging.getLogger("megatron_retrieval")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "megatron_retrieval"):
        data = dataset(tokenizer, records)
    logger.removeHandler(caplog.handler)
    assert len(data) == 2
    assert [row.split()[5:-1] for row in rows(data.batch([1], 0, 0), tokenizer)[:2]] == [["d"], ["e"]]
    for said in (
        "5 questions",
        "1 questions without answers",
        "1 questions without passages",
        "1 long answers",
        "2 questions to learn from",
        "no passage holds an answer that fits: 1 questions",
    ):
        assert said in caplog.text
    with pytest.raises(DataError, match="no question has a passage that holds an answer"):
        dataset(tokenizer, records[1:4])


def test_bad_settings(tokenizer: WordPieceTokenizer) -> None:
    with pytest.raises(ConfigError, match="--num-train-passages 0: must be at least 1"):
        ExtractiveDataConfig(num_train_passages=0)
    with pytest.raises(ConfigError, match="leave 8 tokens"):
        ExtractiveFormatConfig(question_seq_length=64, reader_seq_length=64)
    data = ReaderTrainingDataConfig(train_data=("x",), reading=PassagesToReadConfig(closed_book=True))
    with pytest.raises(ConfigError, match="takes its answers from passages"):
        ExtractiveDataset(data, ExtractiveDataConfig(), LAYOUT, tokenizer, max_answer_length=2, seed=1)
