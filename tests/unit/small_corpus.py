"""A small text for the tests of the corpus, the settings that build it, and what `equal` means."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_retrieval.data.stores.corpus_builder import CorpusBuilderConfig

WORDS = ["river", "city", "in", "##s", "a", "ü", "北", ".", *map(str, range(10))]
#: title and paragraphs; every seventh has no sentence, every fifth no title
TEXTS = [
    (f"City {d}" if d % 5 else "", [f"A river {d} in {'a city. ' * (d % 4)}", f"北 {d}."] if d % 7 else [" ", "\u200b"])
    for d in range(40)
]


def write_source(folder: Path) -> Path:
    """Write a vocabulary and the documents in two files into `folder`, and return it."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), "utf-8")
    for name, texts in (("a.jsonl", TEXTS[:25]), ("b.jsonl", TEXTS[25:])):
        lines = [json.dumps({"title": title, "text": "\n".join(paragraphs)}) for title, paragraphs in texts]
        (folder / name).write_text("\n".join(lines), "utf-8")
    return folder


def builder_config(source: Path, output: Path, **settings: object) -> CorpusBuilderConfig:
    inputs = (str(source / "a.jsonl"), str(source / "b.jsonl"))
    values = {"input": inputs, "output": str(output), "vocab_file": str(source / "vocab.txt"), **settings}
    return CorpusBuilderConfig(**values)  # type: ignore[arg-type]


def assert_same(folder: Path, expected: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in expected.iterdir())
    for file in expected.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes(), file.name
