"""Approximate indexes: exact where all is looked at, tied to their embeddings, and continued where a build stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_retrieval.errors import ConfigError, DataError, MismatchError
from megatron_retrieval.index.api import SearchIndex
from megatron_retrieval.index.approximate.builder import IndexBuilderConfig, build_index
from megatron_retrieval.index.approximate.faiss import FaissIndex, use_threads
from megatron_retrieval.index.approximate.index import ApproximateIndex, ApproximateSearchConfig
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.index.store.embedding_store import EmbeddingStore, StoreIdentity
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter
from megatron_retrieval.types.search import SearchResult

NUM_ROWS, DIMENSION, NUM_LISTS = 3000, 16, 32
FLAT_LISTS = f"IVF{NUM_LISTS},Flat"


def _vectors(num_rows: int, seed: int) -> torch.Tensor:
    return torch.randn(num_rows, DIMENSION, generator=torch.Generator().manual_seed(seed))


def _write(folder: Path, vectors: torch.Tensor, encoder: str = "encoder") -> EmbeddingStore:
    writer = EmbeddingWriter(folder, StoreIdentity("evidence", encoder, len(vectors), "float16"), 700)
    for shard in writer.unfinished_shards():
        rows = writer.rows(shard)
        writer.write(shard, vectors[rows.start : rows.stop])
    return writer.finish()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings with a few rows that repeat others, and an index of inverted lists."""
    folder = tmp_path_factory.mktemp("approximate")
    vectors = _vectors(NUM_ROWS, 0)
    vectors[100:110] = vectors[2000:2010]
    _write(folder / "embeddings", vectors)
    _build(folder, "lists", FLAT_LISTS)
    return folder


def _build(folder: Path, name: str, factory: str, **settings: Any) -> Path:
    build_index(
        IndexBuilderConfig(
            embeddings=folder / "embeddings", index_factory=factory, output=folder / name, num_threads=1, **settings
        )
    )
    return folder / name


def _open(folder: Path, name: str = "lists", **settings: Any) -> ApproximateIndex:
    return ApproximateIndex(
        ApproximateSearchConfig(index=folder / name, **settings), EmbeddingStore(folder / "embeddings")
    )


def _exact(folder: Path, queries: torch.Tensor, k: int, excluded: torch.Tensor | None = None) -> SearchResult:
    return FlatIndex(EmbeddingStore(folder / "embeddings")).search(queries, k, excluded)


def test_all_lists_together_are_exact(folder: Path) -> None:
    index, queries = _open(folder, nprobe=NUM_LISTS), _vectors(40, 1)
    queries[0] = _vectors(NUM_ROWS, 0)[2003]  # of which there are two
    assert isinstance(index, SearchIndex)
    assert (index.num_rows, index.dimension) == (NUM_ROWS, DIMENSION)
    found, exact = index.search(queries, 10), _exact(folder, queries, 10)
    assert torch.equal(found.rows, exact.rows)
    assert found.rows[0, :2].tolist() == [103, 2003]
    torch.testing.assert_close(found.scores, exact.scores)
    assert index.search(queries[:0], 10).rows.shape == (0, 10)


def test_fewer_lists_find_less(folder: Path) -> None:
    queries = _vectors(40, 1)
    exact = _exact(folder, queries, 10).rows
    shares = [
        (_open(folder, nprobe=number).search(queries, 10).rows[:, :, None] == exact[:, None]).float().sum(2).mean()
        for number in (1, 8, NUM_LISTS)
    ]
    assert shares[0] < shares[1] < shares[2] == 1


def test_excluded_rows_take_no_place_from_others(folder: Path) -> None:
    queries = _vectors(7, 2)
    best = _exact(folder, queries, 4).rows
    excluded = torch.cat([best[:, :3], torch.full((7, 1), -1)], dim=1)
    excluded[0] = -1
    found = _open(folder, nprobe=NUM_LISTS).search(queries, 5, excluded)
    assert torch.equal(found.rows, _exact(folder, queries, 5, excluded).rows)
    # two ranges around the best rows, one that begins with one and ends before the next
    before, behind = torch.tensor([30, 30, 0]), torch.tensor([30, 30, 1])
    ranges = torch.stack([best[:, :3] - before, best[:, :3] + behind], 2)
    ranges[0] = 0
    found = _open(folder, nprobe=NUM_LISTS).search(queries, 5, exclude_ranges=ranges)
    exact = FlatIndex(EmbeddingStore(folder / "embeddings")).search(queries, 5, exclude_ranges=ranges)
    assert (exact.rows[1:, 0] != best[1:, 2]).all()
    assert torch.equal(found.rows, exact.rows)


def test_fewer_rows_than_asked_for(folder: Path) -> None:
    found = _open(folder, nprobe=1).search(_vectors(3, 3), NUM_ROWS)
    assert (found.rows[:, 0] >= 0).all()
    assert (found.rows[:, -1] == -1).all()
    assert torch.isneginf(found.scores[:, -1]).all()


def test_reranked_scores_are_those_of_exact_search(folder: Path) -> None:
    queries = _vectors(30, 4)
    codes = _build(folder, "codes", "OPQ4_8,IVF16,PQ4x4", training_sample=1000).name
    exact = _exact(folder, queries, NUM_ROWS)
    score_of = torch.zeros(30, NUM_ROWS).scatter(1, exact.rows, exact.scores)
    plain, ranked = (_open(folder, codes, nprobe=16, rerank_candidates=n).search(queries, 5) for n in (None, 400))
    assert not torch.equal(plain.scores, score_of.gather(1, plain.rows))
    assert torch.equal(ranked.scores, score_of.gather(1, ranked.rows))
    assert (ranked.scores.diff(dim=1) <= 0).all()
    found = [(rows[:, :, None] == exact.rows[:, None, :5]).sum().item() for rows in (plain.rows, ranked.rows)]
    assert found[0] < found[1]
    every = _open(folder, codes, nprobe=16, rerank_candidates=NUM_ROWS).search(queries, 5)
    assert torch.equal(every.rows, exact.rows[:, :5])
    assert torch.equal(every.scores, exact.scores[:, :5])


def test_links_are_followed_as_far_as_asked(folder: Path) -> None:
    links = _build(folder, "links", "HNSW8").name
    queries = _vectors(40, 5)
    exact = _exact(folder, queries, 5).rows
    near, far = (
        (_open(folder, links, ef_search=number).search(queries, 5).rows[:, :, None] == exact[:, None]).sum()
        for number in (5, 500)
    )
    assert near < far
    with pytest.raises(ConfigError, match=r"--nprobe: the index in .*links \(HNSW8\) has no inverted file"):
        _open(folder, links, nprobe=3)
    with pytest.raises(ConfigError, match=r"--ef-search: the index in .*lists .* has no links"):
        _open(folder, ef_search=3)


@pytest.mark.parametrize(
    ("factory", "num_centroids"),
    [("IVF64,Flat", 64), ("OPQ4_8,IVF16,PQ4x4", 16), ("HNSW8", 0), ("IVF8,SQ8", 8), ("PQ4x5", 32), ("HNSW8,PQ4x5", 32)],
)
def test_bytes_are_foretold(factory: str, num_centroids: int, tmp_path: Path) -> None:
    use_threads(1)
    index = FaissIndex.from_factory(factory, DIMENSION)
    assert index.num_centroids == num_centroids
    foretold = index.stored_bytes(NUM_ROWS)
    index.train(_vectors(NUM_ROWS, 0))
    index.add(_vectors(NUM_ROWS, 0))
    index.write(tmp_path / "index")
    assert foretold == pytest.approx((tmp_path / "index").stat().st_size, rel=0.05)


@pytest.mark.parametrize("factory", ["IVF,,", "PQ5", "NoSuchIndex"])
def test_unknown_factories_are_refused(factory: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"--index-factory {factory}: faiss makes no such index of inner products"):
        _build(folder, "refused", factory)
    assert not list(folder.glob("refused*"))


def test_too_few_training_vectors(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"learns 4,096 clusters, and 3,000 vectors are too few.*fewer clusters\.$"):
        _build(folder, "refused", "IVF4096,Flat")
    with pytest.raises(ConfigError, match=r"20 vectors are too few.*, or a larger --training-sample\.$"):
        _build(folder, "refused", FLAT_LISTS, training_sample=20)
    assert not list(folder.glob("refused*"))
    logger = logging.getLogger("megatron_retrieval.index")
    logger.addHandler(caplog.handler)
    try:
        _build(folder, "poor", FLAT_LISTS, training_sample=500)
    finally:
        logger.removeHandler(caplog.handler)
    assert "500 vectors are few for 32 clusters, less than 39 for each" in caplog.text


def test_the_seed_names_the_index(folder: Path) -> None:
    names = {"a": 1, "b": 1, "c": 2}
    for name, seed in names.items():
        _build(folder, f"seed-{name}", FLAT_LISTS, seed=seed, training_sample=2000)
    a, b, c = ((folder / f"seed-{name}" / "index.faiss").read_bytes() for name in names)
    assert a == b != c


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("num_added", [0, 2, 4])
def test_a_stopped_build_is_continued(num_added: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, add, numbers = f"stopped-{num_added}", FaissIndex.add, iter(range(5))

    def add_some(index: FaissIndex, vectors: torch.Tensor) -> None:
        if next(numbers) == num_added:
            raise _StoppedError
        add(index, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(FaissIndex, "add", add_some)
        with pytest.raises(_StoppedError):
            _build(folder, name, FLAT_LISTS)
    assert not (folder / name).exists()
    with pytest.raises(DataError, match="seed has changed since this folder was begun"):
        _build(folder, name, FLAT_LISTS, seed=5)
    with monkeypatch.context() as patch:
        patch.setattr(FaissIndex, "train", _refuse)
        _build(folder, name, FLAT_LISTS)
    assert (folder / name / "index.faiss").read_bytes() == (folder / "lists" / "index.faiss").read_bytes()
    assert {path.name for path in (folder / name).iterdir()} == {"index.faiss", "manifest.json"}


def _refuse(*_: object) -> None:
    raise AssertionError("what was learnt is to be kept")


@pytest.fixture
def damaged(folder: Path) -> Iterator[Path]:
    """The index of lists, to be damaged."""
    contents = {path: path.read_bytes() for path in (folder / "lists").iterdir()}
    yield folder / "lists"
    for path, content in contents.items():
        path.write_bytes(content)


def test_damage_is_noticed(folder: Path, damaged: Path) -> None:
    content = bytearray((damaged / "index.faiss").read_bytes())
    _open(folder).verify()
    content[-100] ^= 1
    (damaged / "index.faiss").write_bytes(content)
    with pytest.raises(DataError, match=r"index\.faiss: the checksum differs"):
        _open(folder).verify()
    (damaged / "index.faiss").write_bytes(content[:-10])
    with pytest.raises(DataError, match=r"index\.faiss: has [\d,]+ bytes instead of [\d,]+\. Build the index"):
        _open(folder)
    manifest = json.loads((damaged / "manifest.json").read_text())
    (damaged / "manifest.json").write_text(json.dumps({**manifest, "index_bytes": len(content) - 10}))
    with pytest.raises(DataError, match=r"index\.faiss: faiss cannot read it"):
        _open(folder)
    (damaged / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"not the manifest of an approximate index"):
        _open(folder)
    (damaged / "manifest.json").unlink()
    with pytest.raises(DataError, match="no approximate index here"):
        _open(folder)


@pytest.mark.parametrize(
    ("vectors", "encoder", "what"),
    [(_vectors(NUM_ROWS, 0), "another", "encoder fingerprint encoder"), (_vectors(NUM_ROWS, 9), "encoder", "checksum")],
)
def test_other_embeddings_are_refused(
    vectors: torch.Tensor, encoder: str, what: str, folder: Path, tmp_path: Path
) -> None:
    other = _write(tmp_path / "other", vectors, encoder)
    with pytest.raises(MismatchError, match=f"was built of embeddings with .*{what}.* build an index of these"):
        ApproximateIndex(ApproximateSearchConfig(index=folder / "lists"), other)


def test_settings_without_an_index_are_refused() -> None:
    with pytest.raises(ConfigError, match="--rerank-candidates is a setting of an approximate index: give --index"):
        ApproximateSearchConfig(rerank_candidates=5)
    with pytest.raises(ConfigError, match="--nprobe 0: must be at least 1"):
        ApproximateSearchConfig(index=Path("i"), nprobe=0)
