"""The evidence store returns what went in, whatever the number of workers, and refuses damage."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_retrieval.data.layouts.sequences import PassageFormat, TextFormatConfig, format_passages
from megatron_retrieval.data.stores import evidence_builder, id_table
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.data.stores.id_table import IdTable, hash_ids, sort_id_table
from megatron_retrieval.data.stores.ragged import Ragged, tokenize
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.types.questions import Passage

WORDS = ["river", "city", "in", "##s", "a", "ü", "北", "."]
PASSAGES = [
    Passage(f"p:{row}", f"City {row % 7}" if row % 5 else "", f'A river "in" {"cities " * (row % 11)}北 {row}.')
    for row in range(61)
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vocabulary and the passages in two files of different kinds."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), "utf-8")
    with open(folder / "a.tsv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([("id", "text", "title"), *((p.id, p.text, p.title) for p in PASSAGES[:40])])
    lines = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in PASSAGES[40:]]
    (folder / "b.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def _config(source: Path, output: Path, **settings: object) -> EvidenceBuilderConfig:
    inputs = (str(source / "a.tsv"), str(source / "b.jsonl"))
    values = {"input": inputs, "output": str(output), "vocab_file": str(source / "vocab.txt"), **settings}
    return EvidenceBuilderConfig(**values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(source: Path) -> Path:
    build_evidence(_config(source, source / "evidence"))
    return source / "evidence"


def test_passages_come_back(folder: Path) -> None:
    store = EvidenceStore(folder)
    assert len(store) == len(PASSAGES)
    rows = np.array([60, 0, 5, 0, 39, 40])
    assert store.passages(rows) == [PASSAGES[row] for row in rows]
    assert store.passage(41) == PASSAGES[41]
    for row in (-1, 61):
        with pytest.raises(IndexError):
            store.passage(row)


@pytest.mark.parametrize("passage_format", ["title-sep-text", "title-text"])
@pytest.mark.parametrize("seq_length", [5, 12, 64])
def test_tokens_are_those_of_the_text(folder: Path, passage_format: PassageFormat, seq_length: int) -> None:
    store = EvidenceStore(folder)
    rows = [7, 60, 7, 10]
    titles, texts = (
        tokenize(store.vocabulary, [getattr(PASSAGES[row], name) for row in rows]) for name in ("title", "text")
    )
    expected = format_passages(titles, texts, store.special, seq_length=seq_length, passage_format=passage_format)
    batch = store.tokens(rows, TextFormatConfig(passage_format=passage_format, retriever_seq_length=seq_length))
    assert batch.ids.tolist() == expected.ids.tolist()
    assert batch.lengths.tolist() == expected.lengths.tolist()


def test_rows_of_ids(folder: Path) -> None:
    store = EvidenceStore(folder)
    rows = store.rows_of([PASSAGES[row].id for row in range(61)])
    assert rows.tolist() == list(range(61))
    assert store.rows_of(["p:60", "p:61", "", "p:0"]).tolist() == [60, -1, -1, 0]
    assert store.rows_of([]).tolist() == []


def test_store_travels_as_its_folder(folder: Path) -> None:
    content = pickle.dumps(EvidenceStore(folder))
    assert len(content) < 500
    assert pickle.loads(content).passage(3) == PASSAGES[3]


def test_bytes_do_not_depend_on_workers(
    source: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_builder, "_CHUNK_PASSAGES", 7)
    build_evidence(_config(source, tmp_path / "two", workers=2))
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_fingerprint_names_contents_and_tokenizer(source: Path, folder: Path, tmp_path: Path) -> None:
    fingerprints = [EvidenceStore(folder).fingerprint]
    build_evidence(_config(source, tmp_path / "cased", lower_case=False))
    build_evidence(_config(source, tmp_path / "order", input=(str(source / "b.jsonl"), str(source / "a.tsv"))))
    fingerprints += [EvidenceStore(tmp_path / name).fingerprint for name in ("cased", "order")]
    assert len(set(fingerprints)) == 3


def test_duplicate_id_is_refused_with_both_places(source: Path, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"id": "new", "title": "", "text": ""}\n{"id": "p:38", "title": "", "text": ""}')
    inputs = (str(source / "a.tsv"), str(tmp_path / "c.jsonl"))
    with pytest.raises(DataError, match=r"c\.jsonl:2: the id 'p:38' is already used at .*a\.tsv:40"):
        build_evidence(_config(source, tmp_path / "evidence", input=inputs))
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


@pytest.mark.parametrize("workers", [1, 2])
def test_failure_leaves_nothing(source: Path, tmp_path: Path, workers: int) -> None:
    inputs = (str(source / "a.tsv"), str(source / "vocab.txt"))
    with pytest.raises(DataError, match=r"vocab\.txt:1"):
        build_evidence(_config(source, tmp_path / "evidence", input=inputs, workers=workers))
    assert not list(tmp_path.iterdir())


def test_refuses_existing_output_and_no_workers(source: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists already"):
        build_evidence(_config(source, folder))
    with pytest.raises(ConfigError, match="--workers"):
        build_evidence(_config(source, tmp_path / "evidence", workers=0))


def _delete(folder: Path) -> None:
    (folder / "texts.values").unlink()


def _cut(folder: Path) -> None:
    with open(folder / "texts.values", "r+b") as file:
        file.truncate(100)


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _cut_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def _poor_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format_version": 1}')


def _other_offsets(folder: Path) -> None:
    offsets = np.fromfile(folder / "texts.offsets", np.int64)
    offsets[-1] += 1
    offsets.tofile(folder / "texts.offsets")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_delete, r"texts\.values: is missing"),
        (_cut, r"texts\.values: has 100 bytes instead of"),
        (_no_manifest, r"no evidence here"),
        (_cut_manifest, r"manifest\.json: damaged, or not the manifest of evidence .not valid JSON"),
        (_poor_manifest, r"damaged, or not the manifest of evidence .it has no"),
        (_other_offsets, r"texts\.offsets: the offsets do not fit"),
    ],
)
def test_damaged_folder(folder: Path, tmp_path: Path, damage: object, message: str) -> None:
    shutil.copytree(folder, tmp_path / "evidence")
    damage(tmp_path / "evidence")  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        EvidenceStore(tmp_path / "evidence")


def test_other_vocabulary_in_the_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "evidence")
    vocabulary = tmp_path / "evidence" / "vocab.txt"
    vocabulary.write_bytes(vocabulary.read_bytes().replace(b"river", b"rivet"))
    with pytest.raises(DataError, match="not the vocabulary"):
        _ = EvidenceStore(tmp_path / "evidence").vocabulary


@pytest.mark.parametrize("block_rows", [16, 1 << 20])
def test_id_table_sorted_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    monkeypatch.setattr(id_table, "BLOCK_ROWS", block_rows)
    names = [f"id {number}".encode() for number in range(777)]
    ids = Ragged.from_sequences(names, np.uint8)
    hashes = hash_ids(names)
    assert sort_id_table(hashes, ids, tmp_path / "h", tmp_path / "r") is None
    table = IdTable(np.fromfile(tmp_path / "h", np.uint64), np.fromfile(tmp_path / "r", np.int64), ids)
    assert table.rows.tolist() == np.argsort(hashes).tolist()
    assert table.rows_of([name.decode() for name in names]).tolist() == list(range(777))


def test_equal_hashes_of_different_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collision is neither a duplicate nor a wrong answer."""
    monkeypatch.setattr(id_table, "hash_ids", lambda names: np.array([len(name) for name in names], np.uint64))
    names = ["aa", "b", "cc", "d", "dd"]
    ids = Ragged.from_sequences([name.encode() for name in names], np.uint8)
    hashes = id_table.hash_ids([name.encode() for name in names])
    assert sort_id_table(hashes, ids, tmp_path / "h", tmp_path / "r") is None
    table = IdTable(np.fromfile(tmp_path / "h", np.uint64), np.fromfile(tmp_path / "r", np.int64), ids)
    assert table.rows_of([*names, "ee", "eee"]).tolist() == [0, 1, 2, 3, 4, -1, -1]
    ids = Ragged.from_sequences([name.encode() for name in ["aa", "b", "cc", "b", "aa"]], np.uint8)
    assert sort_id_table(hashes[[0, 1, 2, 3, 4]], ids, tmp_path / "h", tmp_path / "r") == (1, 3)
