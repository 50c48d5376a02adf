"""The corpus holds what the text says, whatever the workers, the chunks and the interruptions; damage is refused."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megatron_retrieval.data import corpus_builder
from megatron_retrieval.data.corpus import CorpusStore
from megatron_retrieval.data.corpus_builder import CorpusBuilderConfig, build_corpus
from megatron_retrieval.data.corpus_encoding import EncodedDocuments, encode_documents
from megatron_retrieval.data.sentences import Document, split_sentences
from megatron_retrieval.errors import ConfigError, DataError, MegatronRetrievalError
from megatron_retrieval.utils.partial_folder import PartialFolder
from megatron_retrieval.utils.worker_pool import worker_pool

WORDS = ["river", "city", "in", "##s", "a", "ü", "北", ".", *map(str, range(10))]
#: title and paragraphs; every seventh has no sentence, every fifth no title
TEXTS = [
    (f"City {d}" if d % 5 else "", [f"A river {d} in {'a city. ' * (d % 4)}", f"北 {d}."] if d % 7 else [" ", "\u200b"])
    for d in range(40)
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vocabulary and the documents in two files."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), "utf-8")
    for name, texts in (("a.jsonl", TEXTS[:25]), ("b.jsonl", TEXTS[25:])):
        lines = [json.dumps({"title": title, "text": "\n".join(paragraphs)}) for title, paragraphs in texts]
        (folder / name).write_text("\n".join(lines), "utf-8")
    return folder


def _config(source: Path, output: Path, **settings: object) -> CorpusBuilderConfig:
    inputs = (str(source / "a.jsonl"), str(source / "b.jsonl"))
    values = {"input": inputs, "output": str(output), "vocab_file": str(source / "vocab.txt"), **settings}
    return CorpusBuilderConfig(**values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(source: Path) -> Path:
    build_corpus(_config(source, source / "corpus"))
    return source / "corpus"


def _assert_same(folder: Path, expected: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in expected.iterdir())
    for file in expected.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes(), file.name


def test_sentences_of_documents_come_back(folder: Path) -> None:
    store = CorpusStore(folder)
    kept = [(title, paragraphs) for title, paragraphs in TEXTS if "北" in paragraphs[-1]]
    assert len(store) == store.num_documents == len(kept) < len(TEXTS)
    assert store.documents[0] == 0
    for (title, paragraphs), (first, end), row in zip(kept, pairwise(store.documents), range(len(store)), strict=True):
        sentences = [sentence for paragraph in paragraphs for sentence in split_sentences(paragraph, "en")]
        assert [store.sentences[i].tolist() for i in range(first, end)] == store.tokenizer.encode(sentences)
        assert store.titles[row].tolist() == store.tokenizer.encode([title])[0]
    assert store.num_sentences == len(store.sentences)
    assert store.num_tokens == len(store.sentences.values)
    assert store.sentences.lengths.min() > 0
    assert np.diff(store.documents).min() > 0
    assert store.special == store.tokenizer.special


def test_counts_are_told(source: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_documents_without_sentence"] == len(TEXTS) - manifest["num_documents"] == 6
    with caplog.at_level("INFO"):
        build_corpus(_config(source, tmp_path / "corpus"))
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
    build_corpus(_config(source, tmp_path / "two", workers=2))
    monkeypatch.setattr(corpus_builder, "CHUNK_CHARACTERS", 1)
    build_corpus(_config(source, tmp_path / "single"))
    _assert_same(tmp_path / "two", folder)
    _assert_same(tmp_path / "single", folder)
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
        build_corpus(_config(source, tmp_path / name, **change))
    fingerprints = {CorpusStore(path).fingerprint for path in (folder, *(tmp_path / name for name in changes))}
    assert len(fingerprints) == 4


class _Killed(BaseException):
    """Ends the builder where a kill would: no file is tidied up."""


@pytest.mark.parametrize("journal_seconds", [0.0, 1e9])
@pytest.mark.parametrize("chunks_done", [0, 1, 5, 13])
def test_a_killed_builder_continues(
    source: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    journal_seconds: float,
    chunks_done: int,
) -> None:
    """Chunks that the journal knows are not encoded again; what was written behind them is dropped."""
    monkeypatch.setattr(corpus_builder, "CHUNK_DOCUMENTS", 3)
    monkeypatch.setattr(corpus_builder, "JOURNAL_SECONDS", journal_seconds)
    encoded = 0

    def encode(documents: Sequence[Document]) -> EncodedDocuments:
        nonlocal encoded
        if encoded == chunks_done:
            raise _Killed
        encoded += 1
        return encode_documents(documents)

    config = _config(source, tmp_path / "corpus")
    monkeypatch.setattr(corpus_builder, "encode_documents", encode)
    with pytest.raises(_Killed):
        build_corpus(config)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.partial"]
    for name in ("sentences.values", "sentences.offsets", "documents.offsets"):
        with open(tmp_path / "corpus.partial" / "contents" / name, "ab") as file:
            file.write(b"a tail that the journal does not know")
    encoded, total, chunks_done = 0, 14, 99
    journal = json.loads((tmp_path / "corpus.partial" / "journal.json").read_text())
    build_corpus(config)
    assert encoded == total - journal["state"]["chunks"]
    _assert_same(tmp_path / "corpus", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize("method", ["publish", "discard"])
def test_killed_at_the_end(
    source: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Before the folder gets its name, and after that but before the journal is removed."""

    def kill(partial: PartialFolder) -> None:
        raise _Killed

    config = _config(source, tmp_path / "corpus")
    with monkeypatch.context() as patch:
        patch.setattr(PartialFolder, method, kill)
        with pytest.raises(_Killed):
            build_corpus(config)
    if method == "publish":
        (tmp_path / "corpus.partial" / "contents" / ".manifest.json.torn").write_text("{")
    assert build_corpus(config) == len(CorpusStore(folder))
    _assert_same(tmp_path / "corpus", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.fixture
def begun(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CorpusBuilderConfig:
    """The settings of a builder that was killed at once; its inputs stand in `tmp_path`."""
    for name in ("a.jsonl", "b.jsonl", "vocab.txt"):
        shutil.copy(source / name, tmp_path / name)
    config = _config(tmp_path, tmp_path / "corpus")

    def kill(documents: Sequence[Document]) -> EncodedDocuments:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(corpus_builder, "encode_documents", kill)
        with pytest.raises(_Killed):
            build_corpus(config)
    return config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"language": "de"}, r"corpus\.partial: --language has changed .* it was en, now it is de\."),
        ({"lower_case": False}, r"the vocabulary of --vocab-file has changed"),
        ({"input": (__file__,)}, r"--input has changed"),
    ],
)
def test_other_settings_do_not_continue(
    begun: CorpusBuilderConfig, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build_corpus(_config(tmp_path, Path(begun.output), **change))
    assert (tmp_path / "corpus.partial").exists()
    assert build_corpus(begun) == 34


def test_a_changed_input_does_not_continue(begun: CorpusBuilderConfig, tmp_path: Path) -> None:
    with open(tmp_path / "b.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"b\.jsonl \(bytes, time of change\) has changed since"):
        build_corpus(begun)


def test_damaged_work_is_begun_anew(begun: CorpusBuilderConfig, tmp_path: Path) -> None:
    contents = tmp_path / "corpus.partial" / "contents"
    (contents / "titles.offsets").write_bytes(b"")
    with pytest.raises(DataError, match=r"titles\.offsets: no longer holds the 8 bytes"):
        build_corpus(begun)
    assert build_corpus(begun) == 34


def test_lost_work_is_begun_anew(begun: CorpusBuilderConfig, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "corpus.partial" / "contents")
    assert build_corpus(begun) == 34


def test_an_input_that_changes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: CorpusBuilderConfig
) -> None:
    def touch(documents: Sequence[Document]) -> EncodedDocuments:
        os.utime(tmp_path / "a.jsonl", (1, 1))
        return encode_documents(documents)

    monkeypatch.setattr(corpus_builder, "encode_documents", touch)
    with pytest.raises(DataError, match=r"a\.jsonl.*changed while"):
        build_corpus(begun)
    assert not (tmp_path / "corpus").exists()


def test_two_builders_do_not_meet(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(source, tmp_path / "corpus")
    messages = []

    def build_again(documents: Sequence[Document]) -> EncodedDocuments:
        with pytest.raises(DataError, match="another process is writing it") as caught:
            build_corpus(config)
        messages.append(str(caught.value))
        return encode_documents(documents)

    monkeypatch.setattr(corpus_builder, "encode_documents", build_again)
    assert build_corpus(config) == 34
    assert messages


def test_a_folder_in_the_way_stays(source: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.partial").mkdir()
    (tmp_path / "corpus.partial" / "thesis.txt").touch()
    with pytest.raises(DataError, match="in the way"):
        build_corpus(_config(source, tmp_path / "corpus"))
    assert (tmp_path / "corpus.partial" / "thesis.txt").exists()


def test_refused_from_the_start(source: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    with pytest.raises(DataError, match="exists already"):
        build_corpus(_config(source, folder))
    with pytest.raises(ConfigError, match="--workers"):
        build_corpus(_config(source, output, workers=0))
    with pytest.raises(ConfigError, match="--language"):
        build_corpus(_config(source, output, language="English"))
    with pytest.raises(DataError, match="there is no such file"):
        build_corpus(_config(source, output, input=("missing.txt",)))
    with pytest.raises(DataError, match="no regular file"):
        build_corpus(_config(source, output, input=(str(tmp_path),)))
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
        (_not_whole, r"no corpus folder.*tools/build_corpus\.py"),
        (_evidence, r"not that of corpus"),
    ],
)
def test_damaged_folder(folder: Path, tmp_path: Path, damage: object, message: str) -> None:
    shutil.copytree(folder, tmp_path / "corpus")
    damage(tmp_path / "corpus")  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        CorpusStore(tmp_path / "corpus")


def test_a_worker_that_is_killed_is_told() -> None:
    with (
        pytest.raises(MegatronRetrievalError, match="A worker process ended"),
        worker_pool(os._exit, 2, gc.enable, ()) as run,
    ):
        list(run([3, 3]))
