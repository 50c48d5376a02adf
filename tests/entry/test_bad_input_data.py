"""Bad input through the real command lines: one sentence with file and line, a failing status, nothing left behind."""

from __future__ import annotations

import gzip
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_retrieval.errors import EXIT_CODE

TOOLS = Path(__file__).parents[2] / "tools"
VOCABULARY = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])
TSV = b"id\ttext\ttitle\n1\ta\tb\n"


def _run(
    tool: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Status and error sentence of a tool, run as its command line runs it."""
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    assert isinstance(ended.value.code, int)
    error = capsys.readouterr().err
    return ended.value.code, error[error.index("error:") :].strip()


@pytest.fixture
def vocab_file(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text(VOCABULARY)
    return path


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("row.tsv", TSV + b"2\ta\n", "row.tsv:3: expected 3 fields, found 2."),
        ("column.tsv", b"id\ttitle\n1\ta\n", "column.tsv:2: there is no 'text' or 'contents' or 'passage'."),
        ("quote.tsv", TSV + b'2\t"a" b\tc\n', "quote.tsv:3: no tab-separated values"),
        ("empty.tsv", b"", "empty.tsv: the file is empty."),
        ("header.tsv", b"id\ttext\ttitle\n", "header.tsv: there are no passages in the file."),
        ("broken.tsv.gz", gzip.compress(TSV * 999, mtime=0)[:-20], "broken.tsv.gz: broken gzip after line"),
        ("latin.tsv", TSV + b"2\t\xe9t\xe9\ta\n", "latin.tsv:3: byte 3 of the line is not UTF-8."),
        ("cut.jsonl", b'{"title": "a", "text": "b"}\n{"title": "a", "te', "cut.jsonl:2: not valid JSON"),
        ("key.jsonl", b'{"title": "a"}\n', "key.jsonl:1: there is no 'text' or 'contents' or 'passage'."),
        ("twice.tsv", TSV + b"1\ta\tb\n", "twice.tsv:3: the id '1' is already used at"),
    ],
)
def test_bad_passages(
    tmp_path: Path,
    vocab_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
    sentence: str,
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.jsonl").write_text('{"id": "good", "title": "a", "text": "b"}')
    before = sorted(path.name for path in tmp_path.iterdir())
    inputs = [str(tmp_path / "good.jsonl"), str(tmp_path / name)]
    arguments = ["--input", *inputs, "--output", str(tmp_path / "evidence"), "--vocab-file", str(vocab_file)]
    status, error = _run("build_evidence.py", arguments, monkeypatch, capsys)
    assert status == EXIT_CODE
    assert error.startswith(f"error: {tmp_path}/{sentence}")
    assert "\n" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (TSV, "vocab.txt:1: no WordPiece vocabulary"),
        (b"", "vocab.txt: the file is empty."),
        (b"[PAD]\n[UNK]\na\n", "vocab.txt: the vocabulary lacks [CLS], [SEP], [MASK]."),
        (None, "vocab.txt: cannot be read (No such file or directory)."),
    ],
)
def test_bad_vocabulary(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    sentence: str,
) -> None:
    (tmp_path / "passages.tsv").write_bytes(TSV)
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    arguments = ["--input", str(tmp_path / "passages.tsv"), "--output", str(tmp_path / "evidence")]
    arguments += ["--vocab-file", str(tmp_path / "vocab.txt")]
    status, error = _run("build_evidence.py", arguments, monkeypatch, capsys)
    assert status == EXIT_CODE
    assert error.startswith(f"error: {tmp_path}/{sentence}")
    assert not (tmp_path / "evidence").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"data": [\n{"title": "a", "para', "squad.json:2: not valid JSON"),
        (b"[]", "squad.json:1: not valid JSON (expected a JSON object)."),
        (json.dumps({"data": [{"title": "a"}]}).encode(), "squad.json:1: there is no 'paragraphs'."),
        (gzip.compress(b'{"data": []}', mtime=0)[:-9], "squad.json: broken gzip"),
    ],
)
def test_bad_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: bytes, sentence: str
) -> None:
    (tmp_path / "squad.json").write_bytes(content)
    arguments = ["--format", "squad", "--input", str(tmp_path / "squad.json"), "--output", str(tmp_path / "out")]
    status, error = _run("convert_dataset.py", arguments, monkeypatch, capsys)
    assert status == EXIT_CODE
    assert error.startswith(f"error: {tmp_path}/{sentence}")
    assert [path.name for path in tmp_path.iterdir()] == ["squad.json"]


def test_a_real_process_with_workers(tmp_path: Path, vocab_file: Path) -> None:
    """As a user starts it: two workers, an error in the second file, then the corrected file."""
    (tmp_path / "a.tsv").write_bytes(TSV)
    (tmp_path / "b.tsv").write_bytes(b"id\ttext\ttitle\n2\ta\n")
    command = [sys.executable, str(TOOLS / "build_evidence.py"), "--workers", "2", "--vocab-file", str(vocab_file)]
    command += ["--input", str(tmp_path / "a.tsv"), str(tmp_path / "b.tsv"), "--output", str(tmp_path / "evidence")]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert failed.returncode == EXIT_CODE
    assert failed.stderr.splitlines()[-1] == f"error: {tmp_path}/b.tsv:2: expected 3 fields, found 2."
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "evidence").exists()
    (tmp_path / "b.tsv").write_bytes(b"id\ttext\ttitle\n2\ta\tb\n")
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert (tmp_path / "evidence" / "manifest.json").is_file()
