"""The corpus holds what the text says, whatever the workers and the chunks; damage is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from small_corpus import TEXTS, assert_same, builder_config, write_source

from megatron_retrieval.data.files.sentences import split_sentences
from megatron_retrieval.data.stores import corpus_builder
from megatron_retrieval.data.stores.corpus import CorpusStore
from megatron_retrieval.data.stores.corpus_builder import build_corpus
from megatron_retrieval.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def folder(source: Path) -> Path:
    build_corpus(builder_config(source, source / "corpus"))
    return source / "corpus"


def test_sentences_of_documents_come_back(folder: Path) -> None:
    store = CorpusStore(folder)
    kept = [(title, paragraphs) for title, paragraphs in TEXTS if "北" in paragraphs[-1]]
    assert len(store) == store.num_documents == len(kept) < len(TEXTS)
    assert store.documents[0] == 0
    for (title, paragraphs), (first, end), row in zip(kept, pairwise(store.documents), range(len(store)), strict=True):
        sentences = [sentence for paragraph in paragraphs for sentence in split_sentences(paragraph, "en")]
        assert [store.sentences[i].tolist() for i in range(first, end)] == store.vocabulary.encode(sentences)
        assert store.titles[row].tolist() == store.vocabulary.encode([title])[0]
    assert store.num_sentences == len(store.sentences)
    assert store.num_tokens == len(store.sentences.values)
    assert store.sentences.lengths.min() > 0
    assert np.diff(store.documents).min() > 0
    assert store.special == store.vocabulary.special


def test_counts_are_told(source: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_documents_without_sentence"] == len(TEXTS) - manifest["num_documents"] == 6
    with caplog.at_level("INFO"):
        build_corpus(builder_config(source, tmp_path / "corpus"))
    assert f"34 documents, {manifest['num_sentences']} sentences, {manifest['num_tokens']} tokens" in caplog.text
    assert "6 documents without a sentence were left out" in caplog.text


def test_store_travels_as_its_folder(folder: Path) -> None:
    store = CorpusStore(folder)
    content = pickle.dumps(store)
    assert len(content) < 500
    assert pickle.loads(content).sentences[3].tolist() == store.sentences[3].tolist()


def test_bytes_depend_neither_on_workers_nor_on_chunks(
    source: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_builder, "CHUNK_DOCUMENTS", 3)
    build_corpus(builder_config(source, tmp_path / "two", workers=2))
    monkeypatch.setattr(corpus_builder, "CHUNK_CHARACTERS", 1)
    build_corpus(builder_config(source, tmp_path / "single"))
    assert_same(tmp_path / "two", folder)
    assert_same(tmp_path / "single", folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["single", "two"]


def test_fingerprint_names_contents_and_tokenizer(source: Path, folder: Path, tmp_path: Path) -> None:
    inputs = [str(source / name) for name in ("b.jsonl", "a.jsonl")]
    (tmp_path / "split.jsonl").write_text(
        "".join((source / name).read_text("utf-8") + "\n" for name in ("a.jsonl", "b.jsonl")).replace("a city.", "a."),
        "utf-8",
    )
    changes = {
        "cased": {"lower_case": False},
        "order": {"input": tuple(inputs)},
        "text": {"input": (str(tmp_path / "split.jsonl"),)},
    }
    for name, change in changes.items():
        build_corpus(builder_config(source, tmp_path / name, **change))
    fingerprints = {CorpusStore(path).fingerprint for path in (folder, *(tmp_path / name for name in changes))}
    assert len(fingerprints) == 4


def test_refused_from_the_start(source: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    with pytest.raises(DataError, match="exists already"):
        build_corpus(builder_config(source, folder))
    with pytest.raises(ConfigError, match="--workers"):
        build_corpus(builder_config(source, output, workers=0))
    with pytest.raises(ConfigError, match="--language"):
        build_corpus(builder_config(source, output, language="English"))
    with pytest.raises(DataError, match="there is no such file"):
        build_corpus(builder_config(source, output, input=("missing.txt",)))
    with pytest.raises(DataError, match="no regular file"):
        build_corpus(builder_config(source, output, input=(str(tmp_path),)))
    assert not list(tmp_path.iterdir())


def _cut(folder: Path) -> None:
    with open(folder / "sentences.values", "r+b") as file:
        file.truncate(10)


def _other_documents(folder: Path) -> None:
    offsets = np.fromfile(folder / "documents.offsets", np.int64)
    offsets[-1] += 1
    offsets.tofile(folder / "documents.offsets")


def _not_whole(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _evidence(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["num_passages"] = manifest.pop("num_documents")
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, r"sentences\.values: has 10 bytes instead of"),
        (_other_documents, r"documents\.offsets: the offsets do not fit"),
        (_not_whole, r"no corpus here.*megatron-retrieval build corpus"),
        (_evidence, r"not the manifest of a corpus .it has no num_documents"),
    ],
)
def test_damaged_folder(folder: Path, tmp_path: Path, damage: object, message: str) -> None:
    shutil.copytree(folder, tmp_path / "corpus")
    damage(tmp_path / "corpus")  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        CorpusStore(tmp_path / "corpus")
