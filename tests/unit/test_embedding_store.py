"""Embeddings on disk: written resumably, opened cheaply, refused where they do not belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_retrieval.errors import DataError, MegatronRetrievalError, MismatchError
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.index.store import embedding_writer
from megatron_retrieval.index.store.embedding_store import EmbeddingStore, StorageDtype, StoreIdentity
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter, default_rows_per_shard
from megatron_retrieval.index.store.partial_shard import PartialShard
from megatron_retrieval.utils.files import read_json


def _identity(dtype: StorageDtype = "float32", num_rows: int = 10) -> StoreIdentity:
    return StoreIdentity("evidence-a", "encoder-a", num_rows, dtype)


def _vectors(num_rows: int = 10) -> torch.Tensor:
    return torch.randn(num_rows, 6, generator=torch.Generator().manual_seed(0))


def _write(directory: Path, dtype: StorageDtype = "float32", rows_per_shard: int = 4) -> EmbeddingStore:
    writer = EmbeddingWriter(directory, _identity(dtype), rows_per_shard)
    for shard in reversed(writer.unfinished_shards()):
        rows = writer.rows(shard)
        writer.write(shard, _vectors()[rows.start : rows.stop])
    return writer.finish()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_vectors_come_back_in_their_type(tmp_path: Path, dtype: StorageDtype) -> None:
    store = _write(tmp_path / "store", dtype)
    stored = _vectors().to(getattr(torch, dtype))
    assert (len(store), store.dimension) == (10, 6)
    for start, stop in [(0, 10), (0, 4), (3, 9), (8, 10), (5, 5), (10, 10)]:
        assert torch.equal(store.vectors(start, stop), stored[start:stop])
    with pytest.raises(IndexError):
        store.vectors(5, 11)
    chosen = torch.tensor([9, 2, 6, 0, 5])
    assert torch.equal(store.vectors_of(chosen), stored[chosen])
    store.verify()
    found, expected = (FlatIndex(source).search(_vectors()[:3], 4) for source in (store, stored))
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.scores, expected.scores)


def _begun(directory: Path, batch_sizes: tuple[int, ...] = (3, 3, 1)) -> PartialShard:
    return EmbeddingWriter(directory, _identity("float16"), 7).begin(0, batch_sizes)


def test_shard_in_the_making_keeps_whole_batches(tmp_path: Path) -> None:
    batches = _vectors().half()[:7].split([3, 3, 1])
    part, path = _begun(tmp_path), tmp_path / "shard-00000.part"
    assert part.num_batches == 0
    for batch in batches[:2]:
        part.append(batch)
    with pytest.raises(ValueError, match="2 of 3 batches"):
        part.vectors()
    whole = path.read_bytes()
    assert EmbeddingWriter(tmp_path, _identity("float16"), 7).num_rows_written() == 6

    for torn in (whole + b"\x00" * 5, whole + b"\x00" * 100, whole + whole[:30]):  # killed while appending
        path.write_bytes(torn)
        again = _begun(tmp_path)
        assert again.num_batches == 2
        assert path.read_bytes() == whole
    again.append(batches[2])
    assert torch.equal(again.vectors(), torch.cat(batches))
    assert torch.equal(_begun(tmp_path).vectors(), torch.cat(batches))

    damaged = bytearray(whole)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert _begun(tmp_path).num_batches == 1
    assert _begun(tmp_path, (4, 3)).num_batches == 0  # cut in other batches: made anew
    assert path.read_bytes() == b""


def test_finished_shard_is_no_more_in_the_making(tmp_path: Path) -> None:
    writer = EmbeddingWriter(tmp_path, _identity(), 10)
    part = writer.begin(0, [10])
    part.append(_vectors())
    writer.write(0, part.vectors())
    assert writer.num_rows_written() == 10
    writer.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "shard-00000.bin"]


def test_restart_writes_only_what_is_missing(tmp_path: Path) -> None:
    writer = EmbeddingWriter(tmp_path, _identity(), 4)
    writer.write(0, _vectors()[0:4])
    writer.write(1, _vectors()[4:8])
    (tmp_path / "shard-00001.bin").write_bytes(b"cut off")
    (tmp_path / "shard-00002.bin").write_bytes(bytes(2 * 6 * 4))  # appeared, but its checksum did not
    (tmp_path / "shard-00002.part").write_bytes(b"cut off")
    (tmp_path / ".shard-00002.bin.abc").write_bytes(b"left by a killed process")
    with pytest.raises(DataError, match=r"no embeddings here \(manifest\.json is missing"):
        EmbeddingStore(tmp_path)
    with pytest.raises(DataError, match="2 of 3 shards are missing"):
        writer.finish()
    again = EmbeddingWriter(tmp_path, _identity(), rows_per_shard=3)  # the earlier attempt's 4 wins
    assert again.unfinished_shards() == [1, 2]
    again.write(1, _vectors()[4:8])
    again.write(2, _vectors()[8:10])
    assert torch.equal(again.finish().vectors(0, 10), _vectors())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json",
        "shard-00000.bin",
        "shard-00001.bin",
        "shard-00002.bin",
    ]


def test_restart_with_another_encoder_is_refused(tmp_path: Path) -> None:
    other = StoreIdentity("evidence-a", "encoder-b", 10, "float32")
    EmbeddingWriter(tmp_path / "unfinished", _identity(), 4)
    with pytest.raises(MismatchError, match=r"encoder fingerprint encoder-a.*encoder-b"):
        EmbeddingWriter(tmp_path / "unfinished", other, 4)
    _write(tmp_path / "finished")
    with pytest.raises(MismatchError, match=r"encoder fingerprint encoder-a.*encoder-b"):
        EmbeddingWriter(tmp_path / "finished", other, 4)
    assert EmbeddingWriter(tmp_path / "finished", _identity()).is_finished


def test_restart_in_another_precision_is_refused(tmp_path: Path) -> None:
    EmbeddingWriter(tmp_path, StoreIdentity("evidence-a", "encoder-a", 10, "float32", "bfloat16"))
    with pytest.raises(MismatchError, match=r"precision bfloat16, but this job's is float32; give the same settings"):
        EmbeddingWriter(tmp_path, StoreIdentity("evidence-a", "encoder-a", 10, "float32", "float32"))


def test_store_names_both_things_that_do_not_belong_together(tmp_path: Path) -> None:
    store = _write(tmp_path)
    store.require(evidence_fingerprint="evidence-a", encoder_fingerprint="encoder-a")
    with pytest.raises(MismatchError, match=r"evidence evidence-a.*evidence-b"):
        store.require(evidence_fingerprint="evidence-b")
    with pytest.raises(MismatchError, match=r"encoder encoder-a.*encoder-b"):
        store.require(encoder_fingerprint="encoder-b")


def test_foreign_files_are_ignored(tmp_path: Path) -> None:
    _write(tmp_path)
    for name in ["shard-00003.bin", "shard-00000.json", "notes.txt", "manifest.json.bak"]:
        (tmp_path / name).write_text("not a shard")
    assert torch.equal(EmbeddingStore(tmp_path).vectors(0, 10), _vectors())


def test_damage_is_named(tmp_path: Path) -> None:
    _write(tmp_path)
    shard, manifest = tmp_path / "shard-00001.bin", tmp_path / "manifest.json"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"shard-00001.bin: has 95 bytes instead of 96"):
        EmbeddingStore(tmp_path)
    shard.write_bytes(bytes(96))
    with pytest.raises(DataError, match=r"shard-00001.bin: the checksum differs"):
        EmbeddingStore(tmp_path).verify()
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-00001.bin: is missing from embeddings"):
        EmbeddingStore(tmp_path)
    shard.write_bytes(content)
    text = manifest.read_text()
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"manifest.json: damaged, or not the manifest of embeddings .not valid JSON"):
        EmbeddingStore(tmp_path)
    for change in ({"num_rows": 9}, {"dtype": "int8"}, {"format_version": 2}, {"dimension": "x"}):
        manifest.write_text(json.dumps(json.loads(text) | change))
        with pytest.raises(DataError, match=r"manifest.json"):
            EmbeddingStore(tmp_path)
    with pytest.raises(DataError, match="there is no such folder"):
        EmbeddingStore(tmp_path / "nowhere")


def test_vectors_that_do_not_fit_the_type_are_refused(tmp_path: Path) -> None:
    writer = EmbeddingWriter(tmp_path, _identity("float16"), 4)
    vectors = _vectors()[4:8]
    vectors[2, 0] = 1e6
    with pytest.raises(MegatronRetrievalError, match="row 6 is not finite in float16"):
        writer.write(1, vectors)
    assert writer.unfinished_shards() == [0, 1, 2]


def test_shards_are_many_enough_to_share_and_small_enough_to_lose() -> None:
    assert [default_rows_per_shard(rows) for rows in (0, 3_000, 35_822, 21_015_324)] == [512, 512, 560, 65_536]


def test_a_folder_sealed_meanwhile_has_no_finished_shards_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes what says that a shard is finished, between two looks of this one."""
    writer = EmbeddingWriter(tmp_path, _identity("float16"), 7)
    writer.write(0, _vectors()[:7])
    assert writer.unfinished_shards() == [1]

    def sealed(path: Path) -> dict[str, object]:
        path.unlink()
        return read_json(path)

    monkeypatch.setattr(embedding_writer, "read_json", sealed)
    assert writer.unfinished_shards() == [0, 1]
