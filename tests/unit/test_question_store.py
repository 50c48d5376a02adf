"""Stores of questions: what was written comes back, in both vocabularies; stores appear whole and are used again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_retrieval.data.files.question_files import AskedQuestionsConfig, read_questions
from megatron_retrieval.data.stores import question_writer
from megatron_retrieval.data.stores.question_writer import QuestionSource, write_question_store
from megatron_retrieval.data.stores.questions import QuestionStore
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.errors import DataError
from megatron_retrieval.testing.tiny_sentencepiece import SENTENCES, write_sentencepiece
from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

QUESTIONS = [
    {"id": "a", "question": "où est Paris?", "answers": ["France", "la France"]},
    {"question": "who?", "answers": [" ", "Denmark"], "positive_ctxs": [{"passage_id": "7", "text": "x"}]},
    {"question": "no answer", "answers": []},
    {
        "question": "a river runs",
        "answers": ["Rome"],
        "positive_ctxs": [{"passage_id": "9", "text": "x"}, {"passage_id": "é", "text": "y"}],
    },
]


@pytest.fixture
def source(tmp_path: Path) -> QuestionSource:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "river", "runs", "a", "?", "paris", "rome", "france"]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS))
    return QuestionSource(
        files=[str(tmp_path / "questions.json")],
        asked=AskedQuestionsConfig(strip_question_mark=True),
        retriever=WordPieceTokenizer(tmp_path / "vocab.txt"),
        reader=SentencePieceTokenizer(write_sentencepiece(tmp_path / "spiece.model", SENTENCES)),
    )


def _with(source: QuestionSource, **changes: Any) -> QuestionSource:
    return QuestionSource(**{**vars(source), **changes})


def _ids(column: Ragged) -> list[list[int]]:
    return [column[row].tolist() for row in range(len(column))]


@pytest.mark.parametrize("block", [1, 2, 100])
@pytest.mark.parametrize("readers", ["own", "retriever"])
def test_questions_come_back(
    source: QuestionSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, readers: str
) -> None:
    """Whatever the size of blocks; a reader with the retriever's vocabulary shares a column with it."""
    monkeypatch.setattr(question_writer, "_BLOCK_QUESTIONS", block)
    reader: Vocabulary = source.retriever if readers == "retriever" else source.reader
    write_question_store(tmp_path / "store", _with(source, reader=reader))
    store = QuestionStore(tmp_path / "store")
    first, _, _, third = read_questions(source.files[0], source.asked)
    questions = [store.question(row) for row in range(len(store))]
    assert [questions[0], questions[2]] == [first, third]
    assert (questions[1].id, questions[1].answers, questions[1].gold_passage_ids) == ("2", ("Denmark",), ("7",))
    assert [store.gold_ids(row) for row in range(3)] == [(), ("7",), ("9", "é")]
    texts = [question.text for question in questions]
    assert texts == ["où est Paris", "who", "a river runs"]
    assert _ids(store.retriever_queries) == source.retriever.encode(texts)
    assert _ids(store.reader_questions) == reader.encode(texts)
    assert store.answers_of.tolist() == [0, 2, 3, 4]
    assert _ids(store.answers) == reader.encode(["France", "la France", "Denmark", "Rome"])
    assert (tmp_path / "store" / "retriever_tokens.values").exists() == (readers == "own")


def test_a_store_is_used_again_as_long_as_nothing_changed(source: QuestionSource, tmp_path: Path) -> None:
    folder = tmp_path / "store"

    def is_written(source: QuestionSource) -> bool:
        before = (folder / "manifest.json").stat().st_mtime_ns if folder.exists() else None
        write_question_store(folder, source)
        return (folder / "manifest.json").stat().st_mtime_ns != before

    assert is_written(source)
    assert not is_written(source)
    assert is_written(_with(source, asked=AskedQuestionsConfig(max_questions=2)))
    assert len(QuestionStore(folder)) == 2
    assert is_written(_with(source, reader=source.retriever))
    assert is_written(source)
    Path(source.files[0]).write_text(json.dumps(QUESTIONS[:1]))
    assert is_written(source)
    assert len(QuestionStore(folder)) == 1
    content = (folder / "texts.values").read_bytes()
    (folder / "texts.values").write_bytes(content[:-1] + b"?")
    assert is_written(source), "a file that was changed is noticed by its checksum"
    (folder / "texts.values").write_bytes(b"")
    with pytest.raises(DataError, match=r"texts\.values"):
        QuestionStore(folder)
    assert is_written(source)
    assert QuestionStore(folder).question(0).text == "où est Paris"


def test_a_store_appears_whole_or_not_at_all(source: QuestionSource, tmp_path: Path) -> None:
    broken = json.dumps(QUESTIONS)[:-20]
    Path(source.files[0]).write_text(broken)
    with pytest.raises(DataError):
        write_question_store(tmp_path / "store", source)
    assert not (tmp_path / "store").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("")
    Path(source.files[0]).write_text(json.dumps(QUESTIONS))
    with pytest.raises(DataError, match="exists already"):
        write_question_store(other, source)
    assert (other / "mine.txt").exists()


def test_what_is_no_such_store_is_not_replaced(source: QuestionSource, tmp_path: Path) -> None:
    other = tmp_path / "evidence"
    other.mkdir()
    (other / "manifest.json").write_text('{"format": "evidence", "num_passages": 3}')
    (other / "texts.bin").write_bytes(b"kept")
    with pytest.raises(DataError):
        write_question_store(other, source)
    assert (other / "texts.bin").read_bytes() == b"kept"
