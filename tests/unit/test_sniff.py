"""One rule tells what a file holds: its content first, then its name."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.files.sniff import FileKind, sniff, stem, suffix_of
from megatron_retrieval.errors import DataError

CASES = [
    ("unnamed", '[{"question": "q"}]', FileKind.JSON_LIST),
    ("a.jsonl", "\n [\n]", FileKind.JSON_LIST),
    ("unnamed", '{"question": "q"}\n', FileKind.JSON_LINES),
    ("a.tsv", '{ "title": "T", "text": "x"}', FileKind.JSON_LINES),
    ("unnamed", '{"version": "1.1", "data": [{"title": "T"}]}', FileKind.SQUAD),
    ("a.txt", '{\n "data": [', FileKind.SQUAD),
    ("unnamed", "id\ttext\ttitle\r\n1\tx\tT\n", FileKind.TABLE),
    ("a.tsv", "a\tb\n", FileKind.TABLE),
    ("a.qa.csv", "who?\t['x']\n", FileKind.TEXT),
    ("a.csv", "{\"a\": 1} is what?\t['x']\n", FileKind.TEXT),
    ("a.jsonl", "text", FileKind.JSON_LINES),
    ("a.json", "[1, 2]", FileKind.OTHER_JSON),
    ("a.txt", "[Music] Hello.", FileKind.TEXT),
    ("a.txt", "{b}", FileKind.TEXT),
    ("a.txt", " \n", FileKind.TEXT),
    ("a.txt", " " * 100_000 + '{"a": 1}', FileKind.JSON_LINES),
]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("name", "content", "kind"), CASES)
def test_kinds(tmp_path: Path, name: str, content: str, kind: FileKind, compress: bool) -> None:
    path = tmp_path / (f"{name}.gz" if compress else name)
    path.write_bytes(gzip.compress(content.encode()) if compress else b"\xef\xbb\xbf" + content.encode())
    assert sniff(path) is kind


def test_what_cannot_be_read_is_left_to_the_reader_unless_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"id\ttext\ttitle\n" * 99)[:12])
    assert sniff(tmp_path / "cut.gz") is FileKind.TEXT
    (tmp_path / "latin").write_bytes(b'{"a": "\xff"}')
    assert sniff(tmp_path / "latin") is FileKind.JSON_LINES
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="the file is empty"):
        sniff(tmp_path / "empty")
    with pytest.raises(DataError, match="cannot be read"):
        sniff(tmp_path / "missing")


def test_readers_follow_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("{\"a\": 1} is what?\t['x']\n[b] is what?\t['y']\n")
    assert [question.text for question in read_questions(tmp_path / "a.csv")] == ['{"a": 1} is what?', "[b] is what?"]
    (tmp_path / "unnamed").write_text("[b] is what?\t['y']\n")
    assert [question.answers for question in read_questions(tmp_path / "unnamed")] == [("y",)]
    (tmp_path / "a.tsv").write_text('\n{"title": "T", "text": "x"}\n')
    assert [line for line, _ in read_passages(tmp_path / "a.tsv")] == [2]


def test_names() -> None:
    assert [suffix_of(name) for name in ("x/a.qa.csv", "a.jsonl.gz", "a", Path("a.gz"))] == [".csv", ".jsonl", "", ""]
    assert [stem(name) for name in ("x/a.qa.csv", "a.jsonl.gz", Path("a"))] == ["a.qa", "a", "a"]
