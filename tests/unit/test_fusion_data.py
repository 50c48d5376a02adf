"""Training data of readers that write: what is read, which answer is learned, and what is said of the rest."""

from __future__ import annotations

import json
import logging
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_retrieval.data.examples.fusion import FusionDataset
from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig, ReaderTrainingDataConfig
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig, FusionLayout
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.testing.tiny_sentencepiece import write_sentencepiece
from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_retrieval.types.fusion import FusionBatch

LAYOUT = FusionFormatConfig(question_seq_length=20, reader_seq_length=80)
RECORDS = [
    {
        "question": "where is the tower?",
        "answers": ["Paris", "in Paris", "the city in Paris"],
        "ctxs": [{"title": "the tower", "text": f"the tower stands in {city}."} for city in ("Paris", "Rome", "Italy")],
    },
    {"question": "who wrote?", "answers": ["Denmark"], "target": "the prince", "ctxs": [{"title": "", "text": "play"}]},
    {"question": "a river", "answers": [" ", ""], "ctxs": []},
    {"question": "the city", "answers": ["France"], "ctxs": []},
]


@pytest.fixture
def tokenizer(tmp_path: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(write_sentencepiece(tmp_path / "spiece.model"))


def layout_of(tokenizer: SentencePieceTokenizer, config: FusionFormatConfig = LAYOUT) -> FusionLayout:
    return FusionLayout(config, tokenizer)


def dataset(
    tokenizer: SentencePieceTokenizer,
    records: list[dict[str, Any]] = RECORDS,
    *,
    max_answer_length: int = 30,
    layout: FusionFormatConfig = LAYOUT,
    **reading: Any,
) -> FusionDataset:
    path = tokenizer.path.parent / "data.json"
    path.write_text(json.dumps(records))
    data = ReaderTrainingDataConfig(
        train_data=(str(path),), reading=PassagesToReadConfig(**{"num_passages": 2, **reading})
    )
    made = layout_of(tokenizer, layout)
    return FusionDataset(data, made, tokenizer, max_answer_length=max_answer_length, seed=1)


def texts(batch: FusionBatch, tokenizer: SentencePieceTokenizer) -> list[list[str]]:
    """What is read for each question, fillers left out; every text ends with the end token."""
    rows: list[list[str]] = [[] for _ in batch.is_real]
    for place in batch.is_real.flatten().nonzero()[:, 0].tolist():
        ids = batch.texts.ids[place, : batch.texts.lengths[place]].tolist()
        assert ids.index(tokenizer.special.end) == len(ids) - 1
        rows[place // batch.is_real.size(1)].append(tokenizer.decode([ids])[0])
    return rows


def answers(batch: FusionBatch, tokenizer: SentencePieceTokenizer) -> list[str]:
    ids = [[number for number in row if number >= 0] for row in batch.labels.tolist()]
    assert all(row[-1] == tokenizer.special.end for row in ids if row)
    return tokenizer.decode(ids)


def test_what_is_read_and_learned(tokenizer: SentencePieceTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        examples = dataset(tokenizer)
    assert len(examples) == 3
    assert "1 questions without answers" in caplog.text
    assert "2 questions without passages" in caplog.text
    assert "2 blank answers" in caplog.text
    assert "3 questions to learn from, 3 passages" in caplog.text
    batch = examples.batch([0, 1, 2], 0, 0)
    assert texts(batch, tokenizer) == [
        [
            f"question: where is the tower? title: the tower context: the tower stands in {c}."
            for c in ("Paris", "Rome")
        ],
        ["question: who wrote? title: context: play"],
        ["question: the city"],
    ]
    assert batch.is_real.tolist() == [[True, True], [True, False], [True, False]]
    assert answers(batch, tokenizer)[1:] == ["the prince", "France"]


def test_which_answer_is_learned_is_named_by_its_place(tokenizer: SentencePieceTokenizer) -> None:
    examples = dataset(tokenizer)
    drawn = [answers(examples.batch([0], epoch, 0), tokenizer)[0] for epoch in range(30)]
    assert set(drawn) == set(RECORDS[0]["answers"])
    assert drawn == [answers(examples.batch([0], epoch, 0), tokenizer)[0] for epoch in range(30)]


@pytest.mark.parametrize("dp_size", [2, 4])
def test_shares_make_up_the_global_batch(tokenizer: SentencePieceTokenizer, dp_size: int) -> None:
    examples = dataset(tokenizer)
    whole = examples.batch([1, 0, 2], 3, 6)
    shares = [examples.batch([1, 0, 2], 3, 6, rank, dp_size) for rank in range(dp_size)]
    assert len({len(share.is_real) for share in shares}) == 1
    assert list(chain.from_iterable(texts(share, tokenizer) for share in shares))[:3] == texts(whole, tokenizer)
    assert list(chain.from_iterable(answers(share, tokenizer) for share in shares))[:3] == answers(whole, tokenizer)
    assert sum(int(share.is_real.sum()) for share in shares) == int(whole.is_real.sum())
    assert torch.cat([(share.labels >= 0).any(1) for share in shares]).sum() == 3


def test_closed_book(tokenizer: SentencePieceTokenizer) -> None:
    batch = dataset(tokenizer, closed_book=True).batch([0, 1], 0, 0)
    assert texts(batch, tokenizer) == [["question: where is the tower?"], ["question: who wrote?"]]


def test_limits(tokenizer: SentencePieceTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    long = {"question": "the " * 40, "answers": ["the " * 8, "a"], "ctxs": [{"title": "of", "text": "city " * 90}]}
    short = FusionFormatConfig(question_seq_length=4, reader_seq_length=60)
    with caplog.at_level(logging.INFO):
        examples = dataset(tokenizer, [long], max_answer_length=5, layout=short)
    assert "1 long answers" in caplog.text
    assert "unknown characters" not in caplog.text
    with caplog.at_level(logging.INFO):
        dataset(tokenizer, [{"question": "the", "answers": ["{n}", "a"], "ctxs": []}])
    assert "1 answers with unknown characters" in caplog.text
    batch = examples.batch([0], 0, 0)
    assert batch.texts.lengths.tolist() == [60, 1]
    (read,) = texts(batch, tokenizer)[0]
    assert read.startswith("question: the the title: of context: city city")
    found = {answers(examples.batch([0], epoch, 0), tokenizer)[0] for epoch in range(20)}
    assert found == {"the the", "a"}
    with pytest.raises(ConfigError, match="--reader-seq-length 40 leaves no room"):
        layout_of(tokenizer, FusionFormatConfig(question_seq_length=30, reader_seq_length=40))
    with pytest.raises(ConfigError, match="--max-answer-length must be at least 2"):
        dataset(tokenizer, max_answer_length=1)


def test_nothing_to_learn(tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(DataError, match="no question has an answer to learn"):
        dataset(tokenizer, RECORDS[2:3])
