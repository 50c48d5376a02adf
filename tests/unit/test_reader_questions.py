"""Reader data of both formats, and what is said of questions that cannot be read as they should."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from megatron_retrieval.data.files.passage_questions import (
    PassagesToReadConfig,
    QuestionCensus,
    ReaderQuestion,
    read_reader_questions,
)
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig, read_questions
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.types.questions import Passage

DPR = [
    {
        "question": "où?",
        "answers": ["a", " ", "b"],
        "ctxs": [
            {"id": "7", "title": "T", "text": "x a", "score": "1.5", "has_answer": True},
            {"id": 8, "title": "U", "text": "y", "score": "-0.5", "has_answer": False},
        ],
    },
    {"question": "who?", "answers": [], "ctxs": []},
]
FID = [
    {"id": 3, "question": "q", "target": "b", "answers": ["a", "b"], "ctxs": [{"title": "T", "text": "t", "score": 2}]},
    {"id": "x", "question": "q", "target": "b", "ctxs": [{"text": "t"}]},
]
ALL = PassagesToReadConfig()


def read(path: Path, config: PassagesToReadConfig = ALL) -> list[ReaderQuestion]:
    return list(read_reader_questions(path, config))


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return path


def test_dpr_results(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(DPR))
    passages = (Passage("7", "T", "x a"), Passage("8", "U", "y"))
    first, second = read(path)
    assert first == ReaderQuestion("1", "où?", ("a", "b"), passages, (1.5, -0.5))
    assert second == ReaderQuestion("2", "who?", ())
    assert read(path, PassagesToReadConfig(num_passages=1))[0].passages == passages[:1]


@pytest.mark.parametrize("kind", ["list", "lines", "gzip"])
def test_fid_data_whatever_its_wrapping(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "no-telling-name"
    if kind == "lines":
        write_lines(path, FID)
    else:
        text = "\n " + json.dumps(FID, indent=1)
        path.write_bytes(gzip.compress(text.encode()) if kind == "gzip" else text.encode())
    assert read(path) == [
        ReaderQuestion("3", "q", ("a", "b"), (Passage("", "T", "t"),), (2.0,), "b"),
        ReaderQuestion("x", "q", ("b",), (Passage("", "", "t"),), (0.0,), "b"),
    ]


def test_closed_book_reads_no_passages_and_any_questions(tmp_path: Path) -> None:
    closed = PassagesToReadConfig(closed_book=True)
    (tmp_path / "a.qa.csv").write_text("who?\t['a', '']\n")
    assert read(tmp_path / "a.qa.csv", closed) == [ReaderQuestion("1", "who?", ("a",))]
    path = write_lines(tmp_path / "b", [{"question": "q", "answer": "a"}, DPR[0]])
    assert [question.passages for question in read(path, closed)] == [(), ()]


def test_what_is_wanting_is_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, census = write_lines(tmp_path / "a.jsonl", DPR), QuestionCensus()
    list(read_reader_questions(path, ALL, census))
    assert census == QuestionCensus(2, 1, 1, 1, 0)
    logger = logging.getLogger("megatron_retrieval")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "megatron_retrieval"):
        census.log(path)
    logger.removeHandler(caplog.handler)
    assert "1 questions without answers" in caplog.text
    assert "1 questions without passages" in caplog.text
    assert "1 blank answers" in caplog.text
    assert "long" not in caplog.text
    closed = QuestionCensus()
    list(read_reader_questions(path, PassagesToReadConfig(closed_book=True), closed))
    assert closed.num_questions_without_passages == 0


def test_only_what_is_asked_is_counted_and_prepared(tmp_path: Path) -> None:
    records = [{"question": f"l’été {n}??", "answers": ["a"] * (n % 2), "ctxs": []} for n in range(10)]
    path, census = write_lines(tmp_path / "a.jsonl", records), QuestionCensus()
    asked = AskedQuestionsConfig(max_questions=3, question_stride=2, strip_question_mark=True, plain_apostrophes=True)
    texts = ["l'été 0?", "l'été 2?", "l'été 4?"]
    assert [question.text for question in read_reader_questions(path, ALL, census, asked)] == texts
    assert (census.num_questions, census.num_questions_without_answers) == (3, 3)
    assert [(question.id, question.text) for question in read_questions(path, asked)] == list(
        zip("135", texts, strict=True)
    )
    for name in ("max_questions", "question_stride"):
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} 0: must be at least 1"):
            AskedQuestionsConfig(**{name: 0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"question": "q", "answers": []', r"bad:1: not valid JSON"),
        ('[\n{"question": "q", "answers": ["a"]}]', r"bad:2: there is no 'ctxs'\. .*--closed-book"),
        ('{"question": ["q"], "answers": [], "ctxs": []}', r"bad:1: 'question' must be a string"),
        ('\n{"question": "q", "answers": [], "ctxs": [{"text": "t", "score": "high"}]}', r"bad:2: 'score' must be a"),
        ('{"question": "q", "answers": [], "ctxs": [{"text": "t", "score": "nan"}]}', r"bad:1: 'score' must be a"),
        ('{"question": "q", "answers": [], "ctxs": [{"title": "t"}]}', r"bad:1: there is no 'text'"),
        ("[]", r"bad: there are no questions in the file"),
        ("  \n", r"bad: there are no questions in the file"),
        ("q\t['a']\n", r"bad: holds no passages to read\. .*--closed-book"),
        ("", r"bad: the file is empty"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "bad")


def test_no_passages_is_another_flag() -> None:
    with pytest.raises(ConfigError, match="--closed-book reads none"):
        PassagesToReadConfig(num_passages=0)


def test_a_long_file_is_read_record_by_record(tmp_path: Path) -> None:
    def records() -> Any:
        questions = read_reader_questions(tmp_path / "long", ALL)
        return next(questions), next(questions)

    (tmp_path / "long").write_text(json.dumps([DPR[0]] * 2)[:-1] + ", {broken")
    assert len(records()) == 2
