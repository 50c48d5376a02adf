"""Documents of every kind become passages that know their place; what cannot be read is said and left out."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from document_files import write_pdf, write_word
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_retrieval.data.documents.cutting import CutConfig
from megatron_retrieval.data.documents.folder import find_documents
from megatron_retrieval.data.documents.parsed import ParsedDocuments
from megatron_retrieval.data.documents.place import Place
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import file_fingerprint

HTML = """<html><head><title>The Page</title><script>var no = 1;</script></head><body><nav><a href="/">Home</a></nav>
<article><h1>The Page</h1><p>{}</p><p>The lighthouse was built in 1893 by two brothers.</p></article></body></html>"""


def _passages(folder: Path, out: Path, **cutting: int) -> dict[str, list[tuple[str, str, str]]]:
    """Title, text and place of every passage by the file's name."""
    parsed = ParsedDocuments.under(out, CutConfig(**cutting))
    found: dict[str, list[tuple[str, str, str]]] = {}
    for file in find_documents(folder, max_megabytes=1).files:
        path = parsed.path(file, file_fingerprint(file.path))
        parsed.read(file, path)
        found[file.name] = [tuple(passage) for passage in parsed.passages(path)] or parsed.problem(path)
    return found


def test_each_kind_and_its_places(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    write_pdf(docs / "a.pdf", ["Pages hold text. It goes on", "over the page. Here is more."], title="A Report")
    write_word(docs / "b.docx", "The Minutes", ["First point.", "Second point."], [["name", "age"], ["Ada", "36"]])
    (docs / "c.html").write_text(HTML.format("An island stands in the sea, far from the coast. " * 3), "utf-8")
    (docs / "d.md").write_text("# Heading\nText of it.\n", "utf-8")
    (docs / "e.txt.gz").write_bytes(gzip.compress(b"packed"))
    (docs / "f.csv").write_text("name;city\nAda;London\nBob;\n", "utf-8")
    (docs / "g.csv").write_text('id,title,text\n7,Moon,"It, too, shines."\n', "utf-8")
    (docs / "h.jsonl").write_text('{"title": "T", "text": "one"}\n\n{"tags": ["x", "y"], "n": 2.5, "id": 9}\n', "utf-8")
    found = _passages(docs, tmp_path / "parsed", passage_words=8)
    assert found["a.pdf"] == [
        ("A Report", "Pages hold text. It goes on", "page=1"),
        ("A Report", "over the page. Here is more.", "page=2"),
    ]
    assert found["b.docx"] == [
        ("The Minutes", "First point. Second point. name | age", ""),
        ("The Minutes", "Ada | 36", ""),
    ]
    assert {title for title, _, _ in found["c.html"]} == {"The Page"}
    text = " ".join(text for _, text, _ in found["c.html"])
    assert "lighthouse was built in 1893" in text
    assert "var no" not in text
    assert found["d.md"] == [("Heading", "Text of it.", "")]
    assert found["e.txt.gz"] == [("", "packed", "")]
    assert found["f.csv"] == [("", "name: Ada city: London", "row=1"), ("", "name: Bob", "row=2")]
    assert found["g.csv"] == [("Moon", "It, too, shines.", "row=1")]
    assert found["h.jsonl"] == [("T", "one", "line=1"), ("", "tags: x, y n: 2.5", "line=3")]


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    write_pdf(docs / "locked.pdf", ["secret"], password="p")
    write_pdf(docs / "scan.pdf", [""])
    write_word(docs / "cut.docx", "T", ["text"], [])
    (docs / "cut.docx").write_bytes((docs / "cut.docx").read_bytes()[:900])
    (docs / "noise.pdf").write_bytes(bytes(range(256)) * 9)
    (docs / "noise.txt").write_bytes(bytes(range(256)) * 9)
    (docs / "noise.html").write_bytes(bytes(range(256)) * 9)
    (docs / "bad.json").write_text('[{"text": "one"}, {"te', "utf-8")
    (docs / "empty.csv").write_text("", "utf-8")
    reasons = _passages(docs, tmp_path / "parsed")
    for name, reason in {
        "locked.pdf": "is encrypted",
        "scan.pdf": "holds no text",
        "cut.docx": "no Word document",
        "noise.pdf": "no PDF that can be read",
        "noise.txt": "not UTF-8",
        "noise.html": "is binary",
        "bad.json": "not valid JSON",
        "empty.csv": "the file is empty",
    }.items():
        assert reason in reasons[name], name
        assert "\n" not in reasons[name]


def test_which_files_are_read(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for name in (
        "a.txt",
        "sub/b.md",
        ".hidden/c.txt",
        ".d.txt",
        "~$e.docx",
        "f.png",
        "Makefile",
        "out/g.txt",
        "big.pdf",
    ):
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text("text")
    (docs / "big.pdf").write_bytes(bytes((1 << 20) + 1))
    os.symlink(docs, docs / "sub" / "loop")
    os.symlink("nowhere", docs / "gone.txt")
    os.symlink("a.txt", docs / "link.txt")
    os.mkfifo(docs / "pipe.txt")
    contents = find_documents(docs, max_megabytes=1, leave_out=docs / "out")
    assert [file.name for file in contents.files] == ["a.txt", "link.txt", "sub/b.md"]
    assert contents.skipped == {
        "sub/loop": "a link to a folder, which is not followed",
        "gone.txt": "a link that leads nowhere",
        "pipe.txt": "no regular file",
        "big.pdf": "larger than 1 MiB (--max-file-megabytes)",
    }
    assert contents.others == {".png": 1, "no ending": 1}
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"there are no documents in the folder \(\.txt, .*\.pdf"):
        find_documents(tmp_path / "none", max_megabytes=1)
    with pytest.raises(DataError, match="there is no such folder"):
        find_documents(tmp_path / "missing", max_megabytes=1)


NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1).filter(lambda name: name not in (".", ".."))


@settings(max_examples=30)
@given(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.sampled_from(["", "page=3", "row=12"]), st.integers(1))
def test_an_id_is_its_place(file: str, at: str, passage: int) -> None:
    place = Place(file, at, passage)
    assert Place.of(place.id) == place
    assert not any(map(str.isspace, place.id))


@pytest.mark.parametrize(
    "other",
    ["wiki:1", "7", "", "#passage=1", "a.txt#passage=0", "../a.txt#passage=1", "/etc/a#passage=1", "a#b&passage=1"],
)
def test_ids_of_other_evidence_have_no_place(other: str) -> None:
    assert Place.of(other) is None
