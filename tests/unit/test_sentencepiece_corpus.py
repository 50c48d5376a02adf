"""A corpus for T5s: SentencePiece's ids, told apart from a corpus for BERTs in whatever opens it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from megatron_retrieval.data.stores.corpus import CorpusStore
from megatron_retrieval.data.stores.corpus_builder import CorpusBuilderConfig, build_corpus
from megatron_retrieval.errors import ConfigError, DataError, MismatchError
from megatron_retrieval.testing.tiny import write_tiny_corpus
from megatron_retrieval.testing.tiny_sentencepiece import write_sentencepiece
from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("t5"), sentencepiece=True)


@pytest.fixture(scope="module")
def of_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("bert"), num_documents=2)


def test_sentences_of_documents_come_back(folder: Path) -> None:
    """Sentence by sentence, and their ids in turn are those of the whole text."""
    store, source = CorpusStore(folder), folder.parent / "corpus.jsonl"
    tokenizer = SentencePieceTokenizer(folder.parent / "corpus.model")
    documents = [json.loads(line) for line in source.read_text().splitlines()]
    assert len(store) == len(documents)
    for row, (first, end) in enumerate(pairwise(store.documents)):
        title, text = tokenizer.encode([documents[row]["title"], documents[row]["text"]])
        assert store.titles[row].tolist() == title
        assert end - first == 6
        assert [number for i in range(first, end) for number in store.sentences[i].tolist()] == text
    assert store.vocabulary.fingerprint == tokenizer.fingerprint
    assert json.loads((folder / "manifest.json").read_text())["tokenizer"]["kind"] == "SentencePiece"


def test_neither_kind_passes_for_the_other(folder: Path, of_bert: Path) -> None:
    t5, bert = CorpusStore(folder), CorpusStore(of_bert)
    wrong = r"with a SentencePiece vocabulary, but a WordPiece .* build the corpus with --vocab-file"
    with pytest.raises(MismatchError, match=wrong):
        t5.require_kind("WordPiece")
    wrong = r"with a WordPiece vocabulary, but a SentencePiece .* build the corpus with --tokenizer-model"
    with pytest.raises(MismatchError, match=wrong):
        bert.require_kind("SentencePiece")
    t5.require_kind("SentencePiece")
    with pytest.raises(MismatchError, match=r"build the corpus with --tokenizer-model \S+spiece.model"):
        bert.require_vocabulary(t5.vocabulary, "the checkpoint")
    with pytest.raises(MismatchError, match=r"build the corpus with --vocab-file \S+vocab.txt"):
        t5.require_vocabulary(bert.vocabulary, "the checkpoint")
    t5.require_vocabulary(t5.vocabulary, "the checkpoint")


def test_a_manifest_from_before_there_were_two_kinds(of_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(of_bert, tmp_path / "corpus")
    path = tmp_path / "corpus" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["tokenizer"].pop("kind") == "WordPiece"
    path.write_text(json.dumps(manifest))
    assert CorpusStore(tmp_path / "corpus").vocabulary.fingerprint == CorpusStore(of_bert).vocabulary.fingerprint


@pytest.mark.parametrize("given", [{}, {"vocab_file": "vocab.txt", "tokenizer_model": "spiece.model"}])
def test_one_vocabulary_is_given(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="give either --vocab-file"):
        CorpusBuilderConfig(input=("text.txt",), output="corpus", **given)


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _replace(path: Path) -> None:
    write_sentencepiece(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [(_damage, r"has [\d,]+ bytes instead of"), (_replace, "not the vocabulary that the corpus was built with")],
)
def test_another_model_in_the_folder(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(folder, tmp_path / "corpus")
    change(tmp_path / "corpus" / "spiece.model")
    manifest = tmp_path / "corpus" / "manifest.json"
    if change is _replace:  # its size is no sign
        entries = json.loads(manifest.read_text())
        entries["file_bytes"]["spiece.model"] = (tmp_path / "corpus" / "spiece.model").stat().st_size
        manifest.write_text(json.dumps(entries))
    with pytest.raises(DataError, match=message):
        _ = CorpusStore(tmp_path / "corpus").vocabulary


def test_no_model_of_a_t5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A river.\n")
    model = write_sentencepiece(tmp_path / "other.model", pad_id=3)
    with pytest.raises(DataError, match=r"other\.model: its special tokens are"):
        build_corpus(
            CorpusBuilderConfig(
                input=(str(tmp_path / "text.txt"),), output=str(tmp_path / "corpus"), tokenizer_model=str(model)
            )
        )
    assert not (tmp_path / "corpus").exists()
