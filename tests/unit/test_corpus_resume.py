"""A corpus builder that was killed continues where it stopped, and only what belongs together."""

from __future__ import annotations

import json
import operator
import os
import pydoc
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from small_corpus import assert_same, builder_config, write_source

from megatron_retrieval.data.files.sentences import Document
from megatron_retrieval.data.stores import corpus_builder
from megatron_retrieval.data.stores.corpus import CorpusStore
from megatron_retrieval.data.stores.corpus_builder import CorpusBuilderConfig, build_corpus
from megatron_retrieval.data.stores.corpus_encoding import EncodedDocuments, encode_documents
from megatron_retrieval.errors import DataError, MegatronRetrievalError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils import partial_folder
from megatron_retrieval.utils.partial_folder import PartialFolder
from megatron_retrieval.utils.worker_pool import worker_pool


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def folder(source: Path) -> Path:
    build_corpus(builder_config(source, source / "corpus"))
    return source / "corpus"


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
    monkeypatch.setattr(partial_folder, "JOURNAL_SECONDS", journal_seconds)
    encoded = 0

    def encode(tokenizer: Vocabulary, documents: Sequence[Document], language: str) -> EncodedDocuments:
        nonlocal encoded
        if encoded == chunks_done:
            raise _Killed
        encoded += 1
        return encode_documents(tokenizer, documents, language)

    config = builder_config(source, tmp_path / "corpus")
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
    assert_same(tmp_path / "corpus", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize("method", ["publish", "discard"])
def test_killed_at_the_end(
    source: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Before the folder gets its name, and after that but before the journal is removed."""

    def kill(partial: PartialFolder) -> None:
        raise _Killed

    config = builder_config(source, tmp_path / "corpus")
    with monkeypatch.context() as patch:
        patch.setattr(PartialFolder, method, kill)
        with pytest.raises(_Killed):
            build_corpus(config)
    if method == "publish":
        (tmp_path / "corpus.partial" / "contents" / ".manifest.json.torn").write_text("{")
    assert build_corpus(config) == len(CorpusStore(folder))
    assert_same(tmp_path / "corpus", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.fixture
def begun(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CorpusBuilderConfig:
    """The settings of a builder that was killed at once; its inputs stand in `tmp_path`."""
    for name in ("a.jsonl", "b.jsonl", "vocab.txt"):
        shutil.copy(source / name, tmp_path / name)
    config = builder_config(tmp_path, tmp_path / "corpus")

    def kill(tokenizer: Vocabulary, documents: Sequence[Document], language: str) -> EncodedDocuments:
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
        build_corpus(builder_config(tmp_path, Path(begun.output), **change))
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
    def touch(tokenizer: Vocabulary, documents: Sequence[Document], language: str) -> EncodedDocuments:
        os.utime(tmp_path / "a.jsonl", (1, 1))
        return encode_documents(tokenizer, documents, language)

    monkeypatch.setattr(corpus_builder, "encode_documents", touch)
    with pytest.raises(DataError, match=r"a\.jsonl.*changed while"):
        build_corpus(begun)
    assert not (tmp_path / "corpus").exists()


def test_two_builders_do_not_meet(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = builder_config(source, tmp_path / "corpus")
    messages = []

    def build_again(tokenizer: Vocabulary, documents: Sequence[Document], language: str) -> EncodedDocuments:
        with pytest.raises(DataError, match="another process is writing it") as caught:
            build_corpus(config)
        messages.append(str(caught.value))
        return encode_documents(tokenizer, documents, language)

    monkeypatch.setattr(corpus_builder, "encode_documents", build_again)
    assert build_corpus(config) == 34
    assert messages


def test_a_folder_in_the_way_stays(source: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.partial").mkdir()
    (tmp_path / "corpus.partial" / "thesis.txt").touch()
    with pytest.raises(DataError, match="in the way"):
        build_corpus(builder_config(source, tmp_path / "corpus"))
    assert (tmp_path / "corpus.partial" / "thesis.txt").exists()


def test_a_worker_that_is_killed_is_told() -> None:
    with (
        pytest.raises(MegatronRetrievalError, match="A worker process ended"),
        worker_pool(operator.call, 2, partial(pydoc.locate, "os._exit")) as run,
    ):
        list(run([3, 3]))
