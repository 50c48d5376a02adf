"""Passage and question readers: the field's formats, and where the fault is when a file is malformed."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from megatron_retrieval.data.files.json_records import read_json_list, read_json_member
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.files.training_files import read_biencoder
from megatron_retrieval.errors import DataError
from megatron_retrieval.types.questions import Passage, Question
from megatron_retrieval.utils import files

DATA = Path(os.environ.get("MEGATRON_RETRIEVAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
TSV = 'id\ttext\ttitle\n1\t"He said ""no""\tand left"\tA title\n\n2\tplain\t\n'
CONTEXT = {"title": "T", "text": "x", "passage_id": "7"}
EXAMPLE = {"question": "q", "answers": ["a"], "positive_ctxs": [CONTEXT], "hard_negative_ctxs": []}


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("compress", [False, True])
def test_tsv_passages(tmp_path: Path, compress: bool) -> None:
    """Gzip is told by its content: the name says nothing here."""
    path = _write(tmp_path / "passages", gzip.compress(TSV.encode()) if compress else TSV)
    assert list(read_passages(path)) == [
        (2, Passage("1", "A title", 'He said "no"\tand left')),
        (4, Passage("2", "", "plain")),
    ]


def test_jsonl_passages(tmp_path: Path) -> None:
    lines = ['{"title": "T", "text": "x"}', "", '{"id": 5, "title": "Ü", "text": "y"}']
    path = _write(tmp_path / "part-1.jsonl", "\n".join(lines))
    assert list(read_passages(path)) == [(1, Passage("part-1:1", "T", "x")), (3, Passage("5", "Ü", "y"))]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b"", None, "the file is empty"),
        (b"id\ttext\ttitle\n", None, "there are no passages"),
        (b"id\ttitle\n1\tx\n", 2, "there is no 'text' or 'contents' or 'passage'"),
        (b"id\ttext\ttitle\n1\tx\tT\n2\ty\n", 3, "expected 3 fields, found 2"),
        (b"id\ttext\ttitle\n\tx\tT\n", 2, "the id is empty"),
        (b'id\ttext\ttitle\n1\t"x" y\tT\n', 2, "no tab-separated values"),
        (b'id\ttext\ttitle\n1\tx\tT\n2\t"y\tT\n3\tz\tT\n', 3, "no tab-separated values"),
        (b"id\ttext\ttitle\n1\tx\tT\n2\t\xff\tT\n", 3, "byte 3 of the line is not UTF-8"),
        (b'{"title": "T", "text": "x"}\n{"title": "T"}\n', 2, "there is no 'text'"),
        (b'{"title": "T", "text": "x"}\n{"title": "T", "te', 2, "not valid JSON"),
        (b'{"title": "T", "text": "x"}\n[1]\n', 2, "expected one JSON object"),
        (b'{"title": ["T"], "text": "x"}\n', 1, "'title' must be a string"),
        (b'{"id": true, "title": "T", "text": "x"}\n', 1, "'id' must be a string or a whole number"),
        (b'{"title": "T", "text": "\\ud83d"}\n', 1, "surrogate"),
        (gzip.compress(TSV.encode() * 999, mtime=0)[:-90], None, "broken gzip"),
        (gzip.compress(b"id\ttext\ttitle\n", mtime=0)[:12] + b"damaged", None, "broken gzip"),
    ],
)
def test_malformed_passages(tmp_path: Path, content: bytes, line: int | None, problem: str) -> None:
    path = _write(tmp_path / "passages.tsv", content)
    with pytest.raises(DataError, match=problem) as caught:
        list(read_passages(path))
    assert caught.value.line == line
    assert caught.value.path == path


def test_an_empty_file_is_said_before_its_format_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file is empty"):
        list(files.read_lines(_write(tmp_path / "passages.tsv", "")))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.qa.csv", 'who?\t[\'x\', "y\'s"]\n"say ""hi"""\t[\'z\']\n'),
        ("a.jsonl", '{"question": "who?", "answer": ["x", "y\'s"]}\n{"question": "say \\"hi\\"", "answers": "z"}\n'),
        ("a.json", '[{"question": "who?", "answers": ["x", "y\'s"]},\n{"question": "say \\"hi\\"", "answers": ["z"]}]'),
    ],
)
@pytest.mark.parametrize("rename", ["", "unnamed"])
def test_questions(tmp_path: Path, name: str, content: str, rename: str) -> None:
    path = _write(tmp_path / (rename or name), content)
    assert list(read_questions(path)) == [Question("1", "who?", ("x", "y's")), Question("2", 'say "hi"', ("z",))]


def test_biencoder_gives_gold_and_examples(tmp_path: Path) -> None:
    second = {**EXAMPLE, "id": "q9", "positive_ctxs": [{"text": "x", "psg_id": 8}, CONTEXT, CONTEXT, {"text": "no id"}]}
    path = _write(tmp_path / "train.json", json.dumps([EXAMPLE, second]))
    assert list(read_questions(path)) == [Question("1", "q", ("a",), ("7",)), Question("q9", "q", ("a",), ("8", "7"))]
    examples = list(read_biencoder(path))
    assert examples[0].positives == (Passage("7", "T", "x"),)
    assert examples[1].positives[0] == Passage("8", "", "x")


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("a.csv", "q\t['a']\nq\n", 2, "expected 2 fields"),
        ("a.csv", "q\t['a']\nq\t['a\n", 2, "is no list of answers"),
        ("a.csv", "q\t[__import__('os').getcwd()]\n", 1, "is no list of answers"),
        ("a.csv", "q\t[1]\n", 1, "is no list of answers"),
        ("a.jsonl", '{"title": "T", "text": "x"}\n', 1, "a passage .*, not a question"),
        ("a.json", "[\n{},\n{}]", 2, "there is no 'question'"),
        ("a.json", "[]", None, "there are no questions"),
        ("a.json", "", None, "the file is empty"),
    ],
)
def test_malformed_questions(tmp_path: Path, name: str, content: str, line: int | None, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        list(read_questions(_write(tmp_path / name, content)))
    assert caught.value.line == line


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 20])
def test_json_list_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    """Where the chunks end must not matter: in numbers, escapes, multi-byte characters or between records."""
    values = [{"a": "ü🚁\n\\u", "b": [1.5e-3, -12, True, None]}, {}, {"c": {"d": "x" * 50}}]
    path = _write(tmp_path / "a.json", json.dumps(values, indent=1) + "\n")
    whole = files.read_chunks
    monkeypatch.setattr("megatron_retrieval.data.files.json_text.read_chunks", lambda path: whole(path, chunk_bytes))
    records = list(read_json_list(path))
    assert [record.values for record in records] == values
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [lines[record.line - 1].strip()[0] for record in records] == ["{"] * 3
    around = {"version": {"data": []}, "data": values, "more": [1, "]}"]}
    path = _write(tmp_path / "b.json", json.dumps(around, ensure_ascii=False) + "\n")
    assert [record.values for record in read_json_member(path, "data")] == values


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"version": "1.1"}', "there is no 'data'"),
        (b'{"data": [{"a": 1}]', "Is the file cut off"),
        (b'{"data": [{"a": 1}]} {}', "text after the end of the JSON object"),
        (b'{"data": {"a": 1}}', "expected a JSON list"),
        (b"[1]", "expected a JSON object"),
        (b'{"data": [], 1: 2}', "expected a key and its value"),
    ],
)
def test_a_list_within_an_object(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        list(read_json_member(path, "data"))


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b'[{"a": 1},\n{"a": "x', 2, "not valid JSON"),
        (b'[{"a": 1},\n{"a": 2}', 2, "not valid JSON"),
        (b'[{"a": 1},\n', 2, "not valid JSON"),
        (b'[{"a": 1},\n{"a": ' + b"tru, " * 9 + b"}]", 2, "not valid JSON"),
        (b'[{"a": 1}\n] 3', 2, "text after the end"),
        (b'{"a": 1}', 1, "expected a JSON list"),
        (b"[\n1]", 2, "expected a JSON object"),
        (b'[{"a": 1},\n{"a": "\xff"}]', 2, "not UTF-8"),
        (b'[{"a": 1},\n{"a": "\xc3', 2, "not UTF-8"),
        (gzip.compress(b'[{"a": 1},\n' * 9, mtime=0)[:-9], 1, "broken gzip"),
    ],
)
def test_malformed_json_list(tmp_path: Path, content: bytes, line: int, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        list(read_json_list(_write(tmp_path / "a.json", content)))
    assert problem == "broken gzip" or caught.value.line == line


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dpr_questions/nq-dev.qa.csv", 8757),
        ("dpr_questions/trivia-dev.qa.csv", 1999),
        ("dpr_questions/curatedtrec-test.jsonl", 694),
        ("nq_qed/biencoder-nq-qed-dev.json.gz", 1201),
    ],
)
def test_published_question_files(name: str, count: int) -> None:
    if not (DATA / name).exists():
        pytest.skip(f"no {name} in {DATA}")
    questions = list(read_questions(DATA / name))
    assert len(questions) == count
    assert all(question.text and question.answers for question in questions)


@pytest.mark.real_data
def test_published_evidence() -> None:
    path = DATA / "nq_qed" / "psgs_w100.tsv.gz"
    if not path.exists():
        pytest.skip(f"no NQ-QED evidence in {DATA}")
    passages = {passage.id: passage for _, passage in read_passages(path)}
    assert len(passages) == 13_121
    gold = {
        i
        for question in read_questions(DATA / "nq_qed/biencoder-nq-qed-dev.json.gz")
        for i in question.gold_passage_ids
    }
    assert gold <= passages.keys()
