"""Versions of the index on disk: opened where they are what was asked for, kept while somebody may need them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_retrieval.errors import ConfigError, DataError, MismatchError
from megatron_retrieval.index.store.embedding_store import StoreIdentity
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter
from megatron_retrieval.refresh.starting_index import open_given
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions

NUM_ROWS = 10


def _identity(encoder: str, evidence: str = "evidence-a") -> StoreIdentity:
    return StoreIdentity(evidence, encoder, NUM_ROWS, "float32")


def _write(versions: IndexVersions, iteration: int, encoder: str = "encoder-a", *, finish: bool = True) -> Path:
    """A version of shards of four rows, or the first of them only."""
    writer = EmbeddingWriter(versions.path(iteration), _identity(encoder), rows_per_shard=4)
    for shard in writer.unfinished_shards() if finish else [0]:
        writer.write(shard, torch.ones(len(writer.rows(shard)), 6))
    if finish:
        writer.finish()
    versions.snapshot(iteration).mkdir(parents=True)
    return versions.path(iteration)


def test_a_finished_version_is_opened(tmp_path: Path) -> None:
    versions = IndexVersions(tmp_path)
    assert versions.path(500).name == "version-0000500"
    assert versions.complete() == []
    _write(versions, 500, finish=False)
    assert not versions.is_complete(500)
    _write(versions, 40)
    assert versions.is_complete(40)
    assert versions.complete() == [40]
    assert len(versions.open_for(IndexRequest(40, "encoder-a"), "evidence-a")) == NUM_ROWS


def test_what_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    versions = IndexVersions(tmp_path)
    path = _write(versions, 40)
    for request, evidence in ((IndexRequest(40, "encoder-b"), "evidence-a"), (IndexRequest(40, "encoder-a"), "other")):
        with pytest.raises(MismatchError):
            versions.open_for(request, evidence)
    with pytest.raises(DataError, match="there is no such folder"):
        versions.open_for(IndexRequest(41, "encoder-a"), "evidence-a")
    shard = path / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match="has 95 bytes instead of 96"):
        versions.open_for(IndexRequest(40, "encoder-a"), "evidence-a")
    shard.unlink()
    with pytest.raises(DataError, match="missing"):
        versions.open_for(IndexRequest(40, "encoder-a"), "evidence-a")


def test_given_embeddings_are_those_of_the_evidence_and_the_starting_encoder(tmp_path: Path) -> None:
    path = _write(IndexVersions(tmp_path), 0)
    evidence: Any = SimpleNamespace(fingerprint="evidence-a")
    assert len(open_given(path, evidence, "encoder-a")) == NUM_ROWS
    with pytest.raises(MismatchError, match="made by encoder encoder-a"):
        open_given(path, evidence, "encoder-b")
    with pytest.raises(MismatchError, match="of evidence evidence-a"):
        open_given(path, SimpleNamespace(fingerprint="evidence-b"), "encoder-a")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no embeddings can be its own"):
        open_given(path, evidence, None)


def test_only_the_versions_named_are_kept(tmp_path: Path) -> None:
    versions = IndexVersions(tmp_path)
    for iteration in (0, 10, 20):
        _write(versions, iteration)
    _write(versions, 30, finish=False)
    (tmp_path / ".removed-0000005").mkdir()
    (tmp_path / "worker-0.log").write_text("kept")
    versions.prune({10, 30})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "snapshots", "version-0000010", "version-0000030", "worker-0.log"
    ]  # fmt: skip
    assert sorted(path.name for path in versions.snapshots.iterdir()) == ["iter_0000010", "iter_0000030"]


def test_room_is_made_where_something_else_stands(tmp_path: Path) -> None:
    versions = IndexVersions(tmp_path)
    _write(versions, 10)
    _write(versions, 20, finish=False)
    truncated = _write(versions, 30) / "shard-00000.bin"
    truncated.write_bytes(b"cut off")
    for iteration in (10, 20):
        versions.make_room(iteration, _identity("encoder-a"))
        assert (versions.path(iteration) / "shard-00000.bin").exists(), "the same vectors are continued with"
        versions.make_room(iteration, _identity("encoder-b"))
        assert not versions.path(iteration).exists()
    versions.make_room(30, _identity("encoder-a"))
    assert not versions.path(30).exists()


def test_there_is_one_request_at_a_time(tmp_path: Path) -> None:
    versions = IndexVersions(tmp_path / "index")
    assert versions.requested() is None
    versions.withdraw()
    first, again = IndexRequest(10, "encoder-a"), IndexRequest(10, "encoder-a", attempt=2)
    versions.request(first)
    assert IndexVersions(tmp_path / "index").requested() == first
    versions.request(again)
    versions.give_up(first)
    assert versions.requested() == again
    assert versions.is_given_up(first)
    assert not versions.is_given_up(again)
    versions.withdraw()
    assert versions.requested() is None
    (tmp_path / "index" / "request.json").write_text("{")
    with pytest.raises(DataError, match=r"request\.json"):
        versions.requested()


def test_what_was_given_up_can_be_asked_for_again(tmp_path: Path) -> None:
    versions, request = IndexVersions(tmp_path), IndexRequest(10, "encoder-a")
    versions.request(request)
    versions.give_up(request)
    versions.request(request)
    assert not versions.is_given_up(request)


def test_files_tell_how_far_a_version_is(tmp_path: Path) -> None:
    versions = IndexVersions(tmp_path)
    assert versions.num_bytes(10) == 0
    path = _write(versions, 10, finish=False)
    seen = {versions.num_bytes(10)}
    (path / ".shard-00001.bin.abc").write_bytes(b"in work")
    seen.add(versions.num_bytes(10))
    EmbeddingWriter(path, _identity("encoder-a")).write(1, torch.ones(4, 6))
    seen.add(versions.num_bytes(10))
    assert len(seen) == 3
