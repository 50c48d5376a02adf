"""Every kind of text becomes documents of paragraphs; long ones are cut without losing a word; faults have a line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_retrieval.data.files import document_files as corpus_sources
from megatron_retrieval.data.files.document_files import read_documents
from megatron_retrieval.data.files.sentences import Document, check_language, split_sentences
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.utils import files

TSV = "id\ttext\ttitle\n1\ta b\tT\n2\tc\tT\n3\td\tU\n4\te\t\n5\tf\t\n6\tg\tT\n"
SQUAD = {
    "version": "1.1",
    "data": [
        {"title": "The_Title", "paragraphs": [{"context": "One.", "qas": []}, {"context": "Two.\nThree."}]},
        {"title": "Other", "paragraphs": []},
    ],
}


def _context(title: str, text: str) -> dict[str, str]:
    return {"title": title, "text": text, "passage_id": "1"}


BIENCODER = [
    {"question": "q", "answers": ["a"], "positive_ctxs": [_context("T", "x"), _context("T", "y")]},
    {"question": "r", "answers": ["a"], "positive_ctxs": [_context("T", "x"), _context("U", "x")]},
    {"question": "s", "answers": ["a"], "positive_ctxs": [], "hard_negative_ctxs": [_context("N", "n")]},
]
KINDS = {
    "jsonl": (
        '{"title": "T", "text": "a. b.\\n\\nc."}\n\n{"text": "d"}\n{"title": "U", "text": ""}\n',
        [Document("T", ("a. b.", "c.")), Document("", ("d",)), Document("U", ())],
    ),
    "tsv": (
        TSV,
        [
            Document("T", ("a b", "c")),
            Document("U", ("d",)),
            Document("", ("e",)),
            Document("", ("f",)),
            Document("T", ("g",)),
        ],
    ),
    "squad": (json.dumps(SQUAD), [Document("The Title", ("One.", "Two.", "Three.")), Document("Other", ())]),
    "squad, indented": (
        json.dumps(SQUAD, indent=1),
        [Document("The Title", ("One.", "Two.", "Three.")), Document("Other", ())],
    ),
    "biencoder": (json.dumps(BIENCODER), [Document("T", ("x",)), Document("T", ("y",)), Document("U", ("x",))]),
    "plain": (
        "\n \none line\nand another\n\n \t\r\n{\nnext\n\n\n[1] last",
        [Document("", (text,)) for text in ("one line\nand another\n", "{\nnext\n", "[1] last")],
    ),
    "plain with brackets": ("[Music] Hello.\n\n{b}", [Document("", ("[Music] Hello.\n",)), Document("", ("{b}",))]),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_told_by_content(tmp_path: Path, kind: str, compress: bool) -> None:
    content, expected = KINDS[kind]
    path = tmp_path / "unnamed"
    path.write_bytes(gzip.compress(content.encode()) if compress else b"\xef\xbb\xbf" + content.encode())
    assert list(read_documents(path)) == expected


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("a.txt", b"", None, "the file is empty"),
        ("a.txt", b" \n\t\n", None, "there is no text"),
        ("a.txt", b"a\nb\n\xff", 3, "not UTF-8"),
        ("a.txt.gz", gzip.compress(b"a b c\n" * 999, mtime=0)[:-20], None, "broken gzip"),
        ("a.txt", b'{"text": "a"}\n{"text": [["b"]]}\n', 2, "'text' must be a list of strings"),
        ("a.txt", b'{"text": "a"}\n\n{"title": "a"}\n', 3, "there is no 'text'"),
        ("a.txt", b'{"text": "a"}\n{"text": "b', 2, "not valid JSON"),
        ("a.jsonl", b"text\n", 1, "not valid JSON"),
        ("a.json", b"text\n", 1, "not valid JSON"),
        ("a.json", b'{"data": [], "version": ""}', None, "there are no articles"),
        ("a.json", b'{"version": "1.1", "data": [{"title": "T"}]}', None, "there is no 'paragraphs'"),
        ("a.json", b"[]", None, "there is no text"),
        ("a.json", b'[\n{"question": "q", "answers": []}]', 2, "there is no 'text' or"),
        ("a.txt", b"id\ttitle\n1\ta\n", 2, "there is no 'text' or"),
        ("a.tsv", b"a b\tc\n", 1, "no header"),
        ("a.tsv", TSV.encode() + b"7\th\n", 8, "expected 3 fields, found 2"),
    ],
)
def test_malformed(tmp_path: Path, name: str, content: bytes, line: int | None, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        list(read_documents(path))
    assert caught.value.path == path
    if line is not None:
        assert caught.value.line == line


def test_a_line_longer_than_memory_would_like_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + json.dumps({"text": "a" * 100}))
    lines = files.read_lines(path, max_line_bytes=50)
    assert next(lines) == '{"text": "a"}\n'
    with pytest.raises(DataError, match=r"a\.jsonl:2: the line is longer than 50 bytes"):
        next(lines)
    assert len(list(files.read_lines(path, max_line_bytes=-1))) == 2


TEXTS = st.text(st.sampled_from("ab . \n\r\t\u2028\u00a0ü北"), max_size=80)


@given(text=TEXTS, limit=st.integers(1, 30), piece_bytes=st.integers(1, 40))
@example(text="a" * 100, limit=7, piece_bytes=3)
@example(text="a\n  \nb", limit=30, piece_bytes=3)
@settings(max_examples=150)
def test_cutting_plain_text_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, text: str, limit: int, piece_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("plain") / "a.txt"
    path.write_bytes(text.encode())
    paragraphs: list[str] = [""]
    for line in text.split("\n"):
        if line.strip():
            paragraphs[-1] += line
        elif paragraphs[-1]:
            paragraphs.append("")
    expected = ["".join(paragraph.split()) for paragraph in paragraphs if paragraph]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_sources, "MAX_DOCUMENT_CHARACTERS", limit)
        patch.setattr(corpus_sources, "_PIECE_BYTES", piece_bytes)
        if not text.strip():
            with pytest.raises(DataError, match=r"empty|no text"):
                list(read_documents(path))
            return
        found: list[str] = []
        for document in read_documents(path):
            (paragraph,) = document.paragraphs
            assert 0 < len(paragraph) <= limit
            found[len(found) - document.is_continuation :] = [
                (found[-1] if document.is_continuation else "") + "".join(paragraph.split())
            ]
    assert found == expected


@given(texts=st.lists(TEXTS, min_size=1, max_size=4), limit=st.integers(1, 40))
@settings(max_examples=150)
def test_cutting_documents_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], limit: int
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text("".join(json.dumps({"title": "T", "text": text}) + "\n" for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_sources, "MAX_DOCUMENT_CHARACTERS", limit)
        documents = list(read_documents(path))
    assert all(document.title == "T" for document in documents)
    assert all(sum(map(len, document.paragraphs)) <= limit for document in documents)
    assert len(texts) == sum(not document.is_continuation for document in documents)
    words = "".join("".join(paragraph.split()) for document in documents for paragraph in document.paragraphs)
    assert words == "".join("".join(text.split()) for text in texts)


def test_a_document_is_cut_at_a_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(corpus_sources, "MAX_DOCUMENT_CHARACTERS", 10)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"title": "T", "text": "aaa\nbbbb bbb bbbbbb\nc"}))
    assert list(read_documents(path)) == [
        Document("T", ("aaa",)),
        Document("T", ("bbbb bbb ",), True),
        Document("T", ("bbbbbb", "c"), True),
    ]


@given(text=st.text(max_size=120) | st.text(st.sampled_from("A. b?!\u2028\u3000'\"()\u200b\u0301。"), max_size=60))
@example(text="ru (A\u2028. B")
@example(text=" \n ")
@settings(max_examples=300)
def test_sentences_hold_the_whole_text(text: str) -> None:
    for language in ("en", "de", "ru", "zh", "xx"):
        sentences = split_sentences(text, language)
        assert all(sentence == sentence.strip() != "" for sentence in sentences)
        assert "".join("".join(sentences).split()) == "".join(text.split())


def test_sentences_end_where_readers_would_end_them() -> None:
    text = "Mr. Smith\npaid 3.5 million, e.g. in the U.S. and elsewhere.  He left? Yes."
    assert split_sentences(text, "en") == [
        "Mr. Smith paid 3.5 million, e.g. in the U.S. and elsewhere.",
        "He left?",
        "Yes.",
    ]
    assert split_sentences("他来了。他走了。", "zh") == ["他来了。", "他走了。"]


@pytest.mark.parametrize("language", ["", "english", "EN", "e n"])
def test_no_language(language: str) -> None:
    with pytest.raises(ConfigError, match="--language"):
        check_language(language)
