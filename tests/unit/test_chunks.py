"""Documents are cut into chunks without losing a token or a byte; documents that are alike make a group."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_retrieval.data.files.document_files import read_whole_documents
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores import chunk_builder
from megatron_retrieval.data.stores.chunk_builder import ChunkBuilderConfig, build_chunks
from megatron_retrieval.data.stores.chunk_encoding import EncodedChunks, encode_chunks
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.retrieval.chunk_passages import ChunkPassages, key_tokens
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe
from megatron_retrieval.testing.tiny_retro import write_tiny_chunks
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.utils import partial_folder

PLAIN = "\ufeffA café, naïve 🙂🙃.\r\n\r\n  Two  lines\n\n\n北京 in the tower of Paris "


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_bpe(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "in", "two", "lines", "the", "tower", ".", "caf", "##e"]
    path.write_text("\n".join(words))
    return path


def _build(folder: Path, vocab_file: Path, *texts: str, **settings: object) -> ChunkStore:
    """A store of JSONL with these texts, each of a title of its own."""
    source = folder / "texts.jsonl"
    source.write_text(
        "\n".join(json.dumps({"title": f"t{number}", "text": text}) for number, text in enumerate(texts)), "utf-8"
    )
    values = {"input": (str(source),), "output": str(folder / "chunks"), "vocab_file": str(vocab_file), **settings}
    build_chunks(ChunkBuilderConfig(**values))  # type: ignore[arg-type]
    return ChunkStore(folder / "chunks")


def test_bytes_of_a_file_are_those_of_its_chunks(tmp_path: Path, bpe: Path) -> None:
    """Characters of several tokens, CRLF and blank lines included."""
    source = tmp_path / "plain.txt"
    source.write_text(PLAIN, "utf-8", newline="")
    config = ChunkBuilderConfig(
        input=(str(source),), output=str(tmp_path / "chunks"), vocab_file=str(bpe), retro_chunk_length=5
    )
    num_rows = build_chunks(config)
    store = ChunkStore(tmp_path / "chunks")
    text = PLAIN.removeprefix("\ufeff")
    assert len(store) == num_rows == -(-len(store.tokens[0]) // 5)
    assert store.num_documents == 1
    assert store.chunk_bytes.sum() == store.num_bytes == len(text.encode()) == source.stat().st_size - 3
    assert store.vocabulary.decode([store.tokens[0].tolist()]) == [text]
    rows, mask = store.chunk_tokens(np.arange(num_rows))
    for row, ids, is_token in zip(store.chunk_bytes, rows, mask, strict=True):
        # what is cut in a character has as many bytes all the same
        assert row == sum(store.vocabulary.num_bytes()[ids[is_token]])  # type: ignore[attr-defined]


def test_a_document_of_whole_chunks_and_one_of_a_token_more(tmp_path: Path, bpe: Path) -> None:
    store = _build(tmp_path, bpe, "xyzq", "xyzqj", "", "j", retro_chunk_length=4)
    assert store.documents.tolist() == [0, 1, 3, 4], "the empty one is left out"
    assert [store.title(document) for document in range(3)] == ["t0", "t1", "t3"]
    assert store.chunk_bytes.tolist() == [4, 4, 1, 1]
    assert store.first_bytes.tolist() == [1, 1, 1]
    ids, mask = store.values(np.array([[0, 1], [2, -1]]))
    assert mask.sum(2).tolist() == [[4, 5], [1, 0]], "nothing follows the last chunk of a document"
    x, y, z, q, j = (store.vocabulary.encode([letter])[0][0] for letter in "xyzqj")
    assert ids.tolist() == [
        [[x, y, z, q, 0, 0, 0, 0], [x, y, z, q, j, 0, 0, 0]],
        [[j, 0, 0, 0, 0, 0, 0, 0], [0] * 8],
    ]
    assert store.goes_on(np.array([0, 1, 2, 3, -1])).tolist() == [False, True, False, False, False]
    for wrong in (-2, 4):
        with pytest.raises(IndexError, match="0 to 3, or be -1"):
            store.values(np.array([wrong]))


def test_bytes_where_the_vocabulary_drops_spaces_and_case(tmp_path: Path, wordpiece: Path) -> None:
    texts = (" Two  lines\nin the café.  ", "the tower", "\t ")
    store = _build(tmp_path, wordpiece, *texts, retro_chunk_length=2)
    # two, lines | in, the | caf, ##e | . and | the, tower
    assert store.chunk_bytes.tolist() == [len(b" Two  lines\n"), len(b"in the "), len("café".encode()), 3, 9]
    assert store.first_bytes.tolist() == [len(b" Two  "), len(b"the ")]
    assert json.loads((tmp_path / "chunks" / "manifest.json").read_text())["num_bytes_without_token"] == 2


def test_keys_are_made_of_the_text_alone(tmp_path: Path, bpe: Path, wordpiece: Path) -> None:
    """Without title and continuation, whatever the encoder's layout; what is cut within a character is replaced."""
    store = _build(tmp_path, bpe, "in the tower.", "🙂 two lines", retro_chunk_length=2)
    encoder = WordPieceTokenizer(wordpiece, True)
    layout = TextFormatConfig(passage_format="title-sep-text", passage_prefix="the ", retriever_seq_length=5)
    evidence, rows = ChunkPassages(store, encoder), np.arange(len(store))
    tokens = evidence.tokens(rows, layout)
    assert (evidence.fingerprint, len(evidence)) == (store.fingerprint, len(store))
    texts = store.vocabulary.decode([ids[mask].tolist() for ids, mask in zip(*store.chunk_tokens(rows), strict=True)])
    assert any("\ufffd" in text for text in texts)
    for ids, length, text in zip(tokens.ids, tokens.lengths, texts, strict=True):
        (words,) = encoder.encode([f"the {text}"])
        assert ids[:length].tolist() == [2, *words[:3], 3]
    again = key_tokens([store.tokens[0][:2].tolist()], store.vocabulary, encoder, layout)
    assert again.ids[0, : again.lengths[0]].tolist() == tokens.ids[0, : tokens.lengths[0]].tolist()


def test_sections_are_documents_of_one_group(tmp_path: Path, bpe: Path) -> None:
    store = _build(tmp_path, bpe, "xyzqj" * 5, "jqzy", retro_chunk_length=2, retro_section_length=6)
    whole = len(store.vocabulary.encode(["xyzqj" * 5])[0])
    assert np.diff(store.tokens.offsets).tolist() == [6] * (whole // 6) + [whole % 6] + [4]
    assert store.sections.tolist() == [*range(whole // 6 + 1), 0]
    assert store.groups.tolist() == [0] * (whole // 6 + 1) + [1]
    assert store.chunk_bytes.sum() == 29
    assert store.in_sections("all").all()
    assert np.flatnonzero(store.in_sections("even")).tolist() == [0, 2, 4, 5], "a text of one piece is in both halves"
    assert np.flatnonzero(store.in_sections("odd")).tolist() == [1, 3, 5]
    with pytest.raises(ConfigError, match="--retro-section-length 5: must be a multiple of --retro-chunk-length, 2"):
        _build(tmp_path, bpe, "x", retro_chunk_length=2, retro_section_length=5)


def test_texts_of_files_keep_their_white_space(tmp_path: Path) -> None:
    squad = {"version": "1", "data": [{"title": "A_B", "paragraphs": [{"context": "One."}, {"context": "Two.\n\nX"}]}]}
    contents = {
        "a.jsonl": ('{"title": "T", "text": " a\\n\\n b"}\n{"text": ["p", "q"]}', [("T", " a\n\n b"), ("", "p\nq")]),
        "a.tsv": ("id\ttext\ttitle\n1\ta b\tT\n2\tc\tT\n3\td\t\n4\te\t\n", [("T", "a b c"), ("", "d"), ("", "e")]),
        "a.json": (json.dumps(squad), [("A B", "One.\nTwo.\n\nX")]),
        "a.txt": ("\n\none\n\n two\r\n", [("", "\n\none\n\n two\r\n")]),
    }
    for name, (content, expected) in contents.items():
        (tmp_path / name).write_text(content, newline="")
        documents = list(read_whole_documents(tmp_path / name))
        assert [(document.title, *document.paragraphs) for document in documents] == expected
        assert not any(document.is_continuation for document in documents)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_long_texts_are_cut_without_losing_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("megatron_retrieval.data.files.document_files.MAX_DOCUMENT_CHARACTERS", 10)
    monkeypatch.setattr("megatron_retrieval.data.files.document_files._PIECE_BYTES", 7)
    text = "aaa bbb ccc ddd eee fff ggg"
    (tmp_path / name).write_text(text if name == "a.txt" else json.dumps({"text": text}))
    pieces = list(read_whole_documents(tmp_path / name))
    assert "".join(piece.paragraphs[0] for piece in pieces) == text
    assert [piece.is_continuation for piece in pieces] == [False, *[True] * (len(pieces) - 1)]
    assert len(pieces) > 2


def test_groups(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    text = random.integers(2, 300, size=200)
    nearly = text.copy()
    nearly[100] = 0  # 13 of 188 grams differ: similarity 175 / 201 = 0.87
    half = np.r_[text[:100], random.integers(2, 300, size=100)]
    short = [7, 8, 9]
    documents = [text, short, nearly, half, [7, 8, 10], short, random.integers(2, 300, size=50)]
    store = write_tiny_chunks(tmp_path / "chunks", [list(map(int, ids)) for ids in documents], 16)
    assert store.groups.tolist() == [0, 1, 0, 2, 3, 1, 4]
    sources = tmp_path / "titles.jsonl"
    titles = ["The_Tower (of Paris)", "", "the tower of PARIS", "", "Tower of Paris", "Łódź", "łódź!"]
    sources.write_text(
        "\n".join(json.dumps({"title": title, "text": f"{number}"}) for number, title in enumerate(titles))
    )
    vocab_file = str(tmp_path / "bpe" / "tokenizer.json")
    build_chunks(ChunkBuilderConfig(input=(str(sources),), output=str(tmp_path / "of-titles"), vocab_file=vocab_file))
    assert ChunkStore(tmp_path / "of-titles").groups.tolist() == [0, 1, 0, 2, 3, 4, 4]


class _Killed(BaseException):
    """Ends the builder where a kill would: no file is tidied up."""


@pytest.mark.parametrize(
    "killed_in",
    [
        "data.stores.chunk_builder.encode_chunks",
        "data.stores.chunk_builder.finish_chunks",
        "data.stores.chunk_writer.write_vocabulary",  # the signatures are gone
        "utils.partial_folder.PartialFolder.publish",  # there is a manifest
    ],
)
def test_a_killed_builder_continues(tmp_path: Path, bpe: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str) -> None:
    monkeypatch.setattr(chunk_builder, "TASK_DOCUMENTS", 2)
    monkeypatch.setattr(partial_folder, "JOURNAL_SECONDS", 0.0)
    texts = [f"the text {number} of them" * number for number in range(1, 8)]
    expected = _build(tmp_path, bpe, *texts, retro_chunk_length=4)
    expected.folder.rename(tmp_path / "expected")
    done = 0

    def kill(*arguments: object) -> EncodedChunks:
        nonlocal done
        if done == 2:
            raise _Killed
        done += 1
        return encode_chunks(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        done = 0 if killed_in.endswith("encode_chunks") else 2
        patch.setattr(f"megatron_retrieval.{killed_in}", kill)
        with pytest.raises(_Killed):
            _build(tmp_path, bpe, *texts, retro_chunk_length=4)
    source = tmp_path / "texts.jsonl"
    begun = {"input": (str(source),), "output": str(tmp_path / "chunks"), "vocab_file": str(bpe)}
    for change, what in (
        ({"retro_chunk_length": 5}, "--retro-chunk-length has changed"),
        ({"retro_chunk_length": 4, "retro_section_length": 8}, "--retro-section-length has changed"),
    ):
        with pytest.raises(DataError, match=what):
            build_chunks(ChunkBuilderConfig(**{**begun, **change}))  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(chunk_builder, "GROUP_VERSION", 99)
        with pytest.raises(DataError, match="rule of groups has changed"):
            build_chunks(ChunkBuilderConfig(**begun, retro_chunk_length=4))  # type: ignore[arg-type]
    build_chunks(ChunkBuilderConfig(**begun, retro_chunk_length=4))  # type: ignore[arg-type]
    for file in (tmp_path / "expected").iterdir():
        assert file.read_bytes() == (tmp_path / "chunks" / file.name).read_bytes(), file.name
    assert not (tmp_path / "chunks.partial").exists()


def test_text_without_a_token_is_refused(tmp_path: Path, wordpiece: Path) -> None:
    with pytest.raises(DataError, match="there is no token in the text"):
        _build(tmp_path, wordpiece, " \t", retro_chunk_length=2)
