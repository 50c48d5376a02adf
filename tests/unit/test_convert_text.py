"""Folders of documents become passages with titles, ready to be evidence."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from megatron_retrieval.data.convert.registry import DatasetConverterConfig
from megatron_retrieval.data.convert.run import convert_dataset
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.errors import ConfigError, DataError

MARKDOWN = """An introduction.

```
# a comment in code
```
## The  Heading ##
Text below.
# Another
"""


def _convert(out: Path, *inputs: Path, **settings: Any) -> list[tuple[str, str]]:
    """Title and text of every passage."""
    config = DatasetConverterConfig(format="text", input=tuple(map(str, inputs)), output=str(out), **settings)
    convert_dataset(config)
    name = f"psgs_w{config.passage_words}.tsv"
    passages = [passage for _, passage in read_passages(out / name)]
    assert [passage.id for passage in passages] == [str(number) for number in range(1, len(passages) + 1)]
    return [(passage.title, passage.text) for passage in passages]


def test_a_folder_in_order(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for name, content in {
        "b/second_one.txt": "one\n\ttwo  three\u2028four\n",
        "a.md": MARKDOWN,
        "b/empty.txt": "",
        "c.html": "<p>",
        ".hidden/d.txt": "hidden",
        "e.md": "# \nno title",
    }.items():
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text(content, "utf-8")
    (docs / "f.txt.gz").write_bytes(gzip.compress(b"packed"))
    assert _convert(tmp_path / "out", docs, docs / "c.html") == [
        ("The  Heading", "An introduction. ``` # a comment in code ``` Text below. # Another"),
        ("second one", "one two three four"),
        ("e", "# no title"),
        ("f", "packed"),
        ("c", "<p>"),
    ]


def test_cut_at_words_or_at_sentences(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One two three. Four five.\nSix\n\nSeven eight nine ten eleven twelve. Dr. Who.\n")
    words = _convert(tmp_path / "words", tmp_path / "a.txt", passage_words=5)
    assert [text for _, text in words] == [
        "One two three. Four five.", "Six Seven eight nine ten", "eleven twelve. Dr. Who.",
    ]  # fmt: skip
    sentences = _convert(tmp_path / "sentences", tmp_path / "a.txt", passage_words=5, cut="sentences")
    assert [text for _, text in sentences] == [
        "One two three. Four five.", "Six", "Seven eight nine ten eleven", "twelve. Dr. Who.",
    ]  # fmt: skip


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("gut\nschön".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt:2: byte 4 of the line is not UTF-8"):
        _convert(tmp_path / "out", tmp_path / "latin.txt")
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"there is no text in the files \(1 of them\)"):
        _convert(tmp_path / "out", tmp_path / "blank.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"there are no \.txt or \.md files in the folder"):
        _convert(tmp_path / "out", tmp_path / "folder")
    with pytest.raises(DataError, match="cannot be read"):
        _convert(tmp_path / "out", tmp_path / "missing.txt")
    with pytest.raises(ConfigError, match="--passage-words"):
        DatasetConverterConfig(format="text", input=("a",), output="b", passage_words=0)
    with pytest.raises(ConfigError, match="--language"):
        DatasetConverterConfig(format="text", input=("a",), output="b", language="English")
    assert not (tmp_path / "out").exists()
