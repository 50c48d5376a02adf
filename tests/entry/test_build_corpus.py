"""The corpus builder as a command line: a real kill in the middle, bad input in one sentence, real data."""

from __future__ import annotations

import gzip
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_retrieval.data.stores.corpus import CorpusStore
from megatron_retrieval.errors import EXIT_CODE

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "build_corpus.py"
DATA = Path(os.environ.get("MEGATRON_RETRIEVAL_DATA", ROOT.parent / "shared" / "data"))
WORDS = ["river", "city", "in", "a", "to", "the", "of", "##s"]
#: the tool with many small chunks, as often in the journal as its first argument says
SMALL_CHUNKS = f"""
import runpy, sys
from megatron_retrieval.data.stores import corpus_builder
from megatron_retrieval.utils import partial_folder
corpus_builder.CHUNK_CHARACTERS, partial_folder.JOURNAL_SECONDS = 2000, float(sys.argv.pop(1))
runpy.run_path({str(TOOL)!r}, run_name="__main__")
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Words of the command line for a text of some thousand sentences."""
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        for document in range(1000):
            words = [WORDS[(document * 5 + place * place) % len(WORDS)] for place in range(300)]
            text = " ".join(f"{word.title()}." if place % 7 == 3 else word for place, word in enumerate(words))
            file.write(json.dumps({"title": f"The city {document}", "text": text}) + "\n")
    (tmp_path / "b.txt").write_text("A river.\nThe city.\n\n" * 500)
    inputs = [str(tmp_path / name) for name in ("a.jsonl.gz", "b.txt")]
    return ["--input", *inputs, "--vocab-file", str(tmp_path / "vocab.txt"), "--output"]


def _run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The status of the tool, run in this process as its command line runs it."""
    monkeypatch.setattr(sys, "argv", [str(TOOL), *words])
    try:
        runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _descendants(process: int) -> list[int]:
    """Processes that the process started, directly or not."""
    children = [
        int(child) for path in Path(f"/proc/{process}/task").glob("*/children") for child in path.read_text().split()
    ]
    return [*children, *(further for child in children for further in _descendants(child))]


def _is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_killed_and_continued(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bytes are those of an uninterrupted run with another number of workers, and no worker outlives the kill."""
    journal = tmp_path / "killed.partial" / "journal.json"
    program, words = [sys.executable, "-c", SMALL_CHUNKS], [*arguments, str(tmp_path / "killed")]
    process = subprocess.Popen([*program, "0", *words, "--workers", "2"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not journal.exists() or json.loads(journal.read_text())["state"]["chunks"] < 20:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = _descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    done = json.loads(journal.read_text())["state"]
    again = subprocess.run([*program, "10", *words], capture_output=True, text=True, check=True)
    assert f"continuing behind {done['documents_read']:,} documents" in again.stderr
    assert _run([*arguments, str(tmp_path / "whole")], monkeypatch) == 0
    assert len(CorpusStore(tmp_path / "killed")) == 1500
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes(), file.name
    assert not list(tmp_path.glob("*.partial"))
    assert len(workers) >= 2
    assert not [worker for worker in workers if _is_alive(worker)]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.txt", b"", "empty.txt: the file is empty."),
        ("blank.txt", b"\n \n", "blank.txt: there is no text in the file."),
        ("line.jsonl", b'{"text": "a"}\n{"text": true}\n', "line.jsonl:2: 'text' must be a string."),
        ("row.tsv", b"id\ttext\ttitle\n1\ta\n", "row.tsv:2: expected 3 fields, found 2."),
        ("cut.txt.gz", gzip.compress(b"a b c\n" * 999, mtime=0)[:-20], "cut.txt.gz: broken gzip after line"),
        ("latin.txt", b"a\n\xe9t\xe9\n", "latin.txt:2: not UTF-8."),
    ],
)
def test_bad_input(
    tmp_path: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
    sentence: str,
) -> None:
    (tmp_path / name).write_bytes(content)
    before = sorted(path.name for path in tmp_path.iterdir())
    words = [arguments[0], str(tmp_path / name), *arguments[1:], str(tmp_path / "corpus")]
    assert _run(words, monkeypatch) == EXIT_CODE
    error = capsys.readouterr().err
    assert error[error.index("error:") :].startswith(f"error: {tmp_path}/{sentence}")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--input", "blank.jsonl"], "blank.jsonl: there is no sentence in the text."),
        (["--input", "missing.txt"], "missing.txt: there is no such file."),
        (["--vocab-file", "blank.jsonl"], "blank.jsonl:1: no WordPiece vocabulary"),
        (["--tokenizer-model", "blank.jsonl"], "give either --vocab-file (an encoder's vocabulary) or"),
        (["--workers", "0"], "--workers 0: must be at least 1."),
        (["--language", "English"], "--language English: give a language code"),
        (["--output", "."], ".: exists already."),
    ],
)
def test_refused(
    tmp_path: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blank.jsonl").write_text('{"title": "a", "text": " "}\n{"title": "b", "text": "\\u200b"}\n')
    before = sorted(path.name for path in tmp_path.iterdir())
    assert _run([*arguments, "corpus", *words], monkeypatch) == EXIT_CODE
    error = capsys.readouterr().err
    assert error[error.index("error:") :].startswith(f"error: {sentence}")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.real_data
def test_real_text_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")
    names = ("popqa/psgs_w100.tsv.gz", "squad/dev-v1.1.json.gz", "nq_qed/biencoder-nq-qed-dev.json.gz", "README.md")
    inputs = [str(DATA / name) for name in names]
    vocabulary = str(DATA / "tokenizers" / "bert-base-uncased-vocab.txt")
    output = tmp_path / "corpus"
    assert _run(["--input", *inputs, "--vocab-file", vocabulary, "--output", str(output)], monkeypatch) == 0
    store = CorpusStore(output)
    assert store.titles[int(store.titles.lengths.argmax())].size > 5
    assert 15_000 < store.num_sentences < 20_000
    assert 20 < store.num_tokens / store.num_sentences < 40
