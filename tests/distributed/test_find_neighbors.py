"""Neighbours of chunks: what they are nearest to, what they are not served, the same bytes on any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from megatron_retrieval.applications import neighbor_finding
from megatron_retrieval.applications.neighbor_finding import FindNeighborsConfig, main
from megatron_retrieval.data.stores.chunk_selection import ChunkSelectionConfig
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.neighbors import NeighborStore
from megatron_retrieval.errors import ConfigError, DataError, MismatchError
from megatron_retrieval.index.approximate.builder import IndexBuilderConfig, build_index
from megatron_retrieval.index.approximate.index import ApproximateSearchConfig
from megatron_retrieval.index.store.embedding_store import StoreIdentity
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_retro import write_tiny_chunks
from megatron_retrieval.utils import partial_folder

LENGTH, K, DIMENSION = 4, 6, 12


def _write_keys(folder: Path, chunks: ChunkStore, vectors: torch.Tensor, encoder: str = "encoder") -> None:
    writer = EmbeddingWriter(folder, StoreIdentity(chunks.fingerprint, encoder, len(chunks), "float16"))
    for shard in writer.unfinished_shards():
        rows = writer.rows(shard)
        writer.write(shard, vectors[rows.start : rows.stop])
    writer.finish()


def _keys(num_rows: int) -> torch.Tensor:
    """Of very different lengths, so that inner products order them otherwise; some equal."""
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(num_rows, DIMENSION, generator=random) * (0.2 + 2 * torch.rand(num_rows, 1, generator=random))
    vectors[num_rows // 2 :: 9] = vectors[: num_rows - num_rows // 2 : 9]
    return vectors.half()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 documents of one to four rows; documents 3, 40 and 90 are one text."""
    folder = tmp_path_factory.mktemp("neighbors")
    random = np.random.default_rng(0)
    documents = [random.integers(2, 300, size=random.integers(1, 15)).tolist() for _ in range(150)]
    documents[40] = documents[90] = documents[3] = list(range(100, 114))
    chunks = write_tiny_chunks(folder / "chunks", documents, LENGTH)
    _write_keys(folder / "keys", chunks, _keys(len(chunks)))
    unit = torch.nn.functional.normalize(_keys(len(chunks)).float()).half()
    _write_keys(folder / "unit-keys", chunks, unit)
    for keys in ("keys", "unit-keys"):
        build_index(
            IndexBuilderConfig(embeddings=folder / keys, index_factory="IVF9,Flat", output=folder / f"{keys}-index")
        )
    return folder


def _config(
    folder: Path, output: Path, *, selection: dict[str, Any] | None = None, **settings: Any
) -> FindNeighborsConfig:
    values: dict[str, Any] = {"retro_query_num_neighbors_save": K, **settings}
    return FindNeighborsConfig(
        chunks=folder / "chunks",
        embeddings=folder / "keys",
        output=output,
        selection=ChunkSelectionConfig(**{"valid_fraction": 0.1, **(selection or {})}),
        **values,
    )


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """This process as the only rank."""
    global _topology
    with process_topology(ParallelConfig(device="cpu")) as _topology:
        yield


_topology: ProcessTopology


def _find(config: FindNeighborsConfig) -> NeighborStore:
    main(config, _topology)
    chunks = ChunkStore(config.chunks)
    return NeighborStore(config.output, chunks, ChunkStore(config.database) if config.database else None)


def _brute_force(store: NeighborStore, unit: NDArray[np.integer] | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows and distances by comparing everything; `unit` of each document: rows of an equal one are left out."""
    chunks, rows = store.chunks, np.arange(len(store.chunks))
    vectors = _keys(len(chunks)).double()
    distances = (vectors[:, None] - vectors).square().sum(2).numpy()
    searched = np.concatenate([np.arange(*pair) for pair in store.database_ranges.tolist()])
    distances[:, np.setdiff1d(rows, searched)] = np.inf
    if unit is not None:
        of_row = unit[chunks.document_of(rows)]
        distances[of_row[:, None] == of_row] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :K]
    found = np.take_along_axis(distances, order, 1)
    return np.where(np.isinf(found), -1, order), found


@pytest.mark.parametrize("rule", ["group", "document", "none"])
def test_equals_brute_force(folder: Path, tmp_path: Path, rule: str) -> None:
    store = _find(_config(folder, tmp_path / "n", retro_own_document=rule))
    chunks, rows = store.chunks, np.arange(len(store.chunks))
    units = {"group": np.asarray(chunks.groups), "document": np.arange(chunks.num_documents), "none": None}
    expected, distances = _brute_force(store, units[rule])
    found = store.rows(rows, K)
    assert np.array_equal(found, expected)
    np.testing.assert_allclose(store.distances(rows, K), distances, rtol=1e-3, atol=1e-3)
    if rule == "none":
        searched = np.concatenate([np.arange(*pair) for pair in store.database_ranges.tolist()])
        assert not store.distances(searched, 1).any(), "a row that is searched finds itself, or its like"
        itself = found[searched, 0] == searched
        assert np.array_equal(store.overlap(searched, 1)[itself, 0], chunks.chunk_tokens(searched[itself])[1].sum(1))


def _by_index(folder: Path, output: Path, nprobe: int, keys: str = "unit-keys", **settings: Any) -> FindNeighborsConfig:
    # vectors of half precision are not quite of one length
    approximate = ApproximateSearchConfig(index=folder / f"{keys}-index", nprobe=nprobe, rerank_candidates=4 * K)
    return replace(_config(folder, output, **settings), embeddings=folder / keys, approximate=approximate)


def test_an_index_may_miss_rows_but_finds_none_that_are_left_out(folder: Path, tmp_path: Path) -> None:
    """The exact neighbours where all lists are searched, though half of the rows are not; else it says how many."""
    selection = {"retro_database_share": 0.5}
    exact = _find(replace(_config(folder, tmp_path / "exact", selection=selection), embeddings=folder / "unit-keys"))
    rows = np.arange(len(exact))
    every = _find(_by_index(folder, tmp_path / "every", 9, selection=selection))
    assert np.array_equal(every.rows(rows, K), exact.rows(rows, K))
    assert np.array_equal(every.distances(rows, K), exact.distances(rows, K))
    few = _find(_by_index(folder, tmp_path / "few", 2, selection=selection))
    found, groups = few.rows(rows, K), np.asarray(few.chunks.groups)[few.chunks.document_of(rows)]
    searched = np.concatenate([np.arange(*pair) for pair in few.database_ranges.tolist()])
    assert np.isin(found[found >= 0], searched).all()
    assert not ((groups[found] == groups[:, None]) & (found >= 0)).any()
    assert (few.distances(rows, K) >= exact.distances(rows, K)).all()
    recalls = [json.loads((tmp_path / n / "manifest.json").read_text())["recall_of_exact"] for n in ("every", "few")]
    is_found = (exact.rows(rows, K)[:, :, None] == found[:, None]).any(2) & (exact.rows(rows, K) >= 0)
    sample = np.linspace(0, len(rows) - 1, 256).astype(np.int64)
    assert recalls[0] == 1
    assert recalls[1] == pytest.approx(is_found[sample].sum() / (exact.rows(sample, K) >= 0).sum())
    assert 0.2 < recalls[1] < 1
    with pytest.raises(MismatchError, match="vectors have lengths from"):
        _find(_by_index(folder, tmp_path / "n", 9, "keys"))


def _find_on_ranks(topology: Any, folder: str, output: str) -> None:
    main(_config(Path(folder), Path(output)), topology)
    main(_by_index(Path(folder), Path(f"{output} by index"), 2), topology)


class _Killed(BaseException):
    """Ends the search where a kill would."""


def _kill_at(call: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kill the search of this process at this block; how many rows each block had is appended to the list."""
    shared_runs, sizes = neighbor_finding.shared_runs, []

    def count(chunks: Any, *others: Any) -> Any:
        sizes.append(len(chunks))
        if len(sizes) == call:
            raise _Killed
        return shared_runs(chunks, *others)

    monkeypatch.setattr(neighbor_finding, "shared_runs", count)
    return sizes


def test_ranks_write_the_same_bytes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From scratch; behind what one rank had done when it was killed; in blocks of any size."""
    _find(_config(folder, tmp_path / "1"))
    _find(_by_index(folder, tmp_path / "1 by index", 2))
    with monkeypatch.context() as patch:
        patch.setattr(neighbor_finding, "BLOCK_ROWS", 100)
        _kill_at(3, patch)
        with pytest.raises(_Killed):
            _find(_config(folder, tmp_path / "3"))
    for num_ranks in (2, 3):
        run_on_ranks(_find_on_ranks, num_ranks, str(folder), str(tmp_path / str(num_ranks)))
    monkeypatch.setattr(neighbor_finding, "BLOCK_ROWS", 17)
    monkeypatch.setattr(neighbor_finding, "_RANGES_AT_ONCE", 20)
    _find(_config(folder, tmp_path / "small blocks"))
    pairs = [("1", other) for other in ("2", "3", "small blocks")]
    for one, other in [*pairs, *(("1 by index", f"{number} by index") for number in (2, 3))]:
        for file in (tmp_path / one).iterdir():
            assert file.read_bytes() == (tmp_path / other / file.name).read_bytes(), (other, file.name)


def test_a_killed_search_continues(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _find(_config(folder, tmp_path / "whole"))
    monkeypatch.setattr(neighbor_finding, "BLOCK_ROWS", 50)
    monkeypatch.setattr(partial_folder, "JOURNAL_SECONDS", 0.0)
    sizes = _kill_at(4, monkeypatch)
    config = _config(folder, tmp_path / "n")
    with pytest.raises(_Killed):
        _find(config)
    for changed, name in (
        (_config(folder, tmp_path / "n", retro_query_num_neighbors_save=5), "--retro-query-num-neighbors-save"),
        (_config(folder, tmp_path / "n", retro_own_document="none"), "the own document"),
        (_config(folder, tmp_path / "n", selection={"valid_fraction": 0.2}), "--valid-fraction"),
        (_config(folder, tmp_path / "n", selection={"retro_database_share": 0.5}), "--retro-database-share"),
    ):
        with pytest.raises(DataError, match=f"{name} has changed since"):
            _find(changed)
    with open(tmp_path / "n.partial" / "contents" / "rows", "ab") as file:
        file.write(b"a tail that the journal does not know")
    _find(config)
    assert sum(sizes) == len(ChunkStore(folder / "chunks")) + 50, (
        "only the block in which it was killed is searched again"
    )
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "n" / file.name).read_bytes(), file.name
    with pytest.raises(DataError, match="exists already"):
        _find(config)


def test_distances_never_grow_with_the_database(folder: Path, tmp_path: Path) -> None:
    rows, before = np.arange(len(ChunkStore(folder / "chunks"))), np.inf
    for share in (0.1, 0.4, 1.0):
        store = _find(_config(folder, tmp_path / str(share), selection={"retro_database_share": share}))
        distances = np.asarray(store.distances(rows, K), np.float32)
        assert (distances <= before).all()
        assert (distances < before).any()
        before = distances


def test_a_document_that_is_nearly_the_whole_database(tmp_path: Path) -> None:
    """It still gets the rows of the others; where fewer are left than wanted, -1 stands behind them."""
    random = np.random.default_rng(0)
    documents = [
        random.integers(2, 300, size=4000).tolist(),
        *(random.integers(2, 300, size=8).tolist() for _ in range(5)),
    ]
    chunks = write_tiny_chunks(tmp_path / "chunks", documents, LENGTH)
    assert len(chunks) == 1010
    _write_keys(tmp_path / "keys", chunks, _keys(len(chunks)))
    everything = {"valid_fraction": 0.0}
    store = _find(_config(tmp_path, tmp_path / "n", selection=everything, retro_query_num_neighbors_save=12))
    rows = store.rows(np.arange(1000), 12)
    assert (np.sort(rows[:, :10], 1) == np.arange(1000, 1010)).all()
    assert (rows[:, 10:] == -1).all()
    assert np.isinf(store.distances(np.arange(1000), 12)[:, 10:]).all()
    others = store.rows(np.arange(1000, 1010), 12)
    documents_found = chunks.document_of(others)
    assert (documents_found != chunks.document_of(np.arange(1000, 1010))[:, None]).all()


def test_what_does_not_belong_together_is_refused(folder: Path, tmp_path: Path) -> None:
    other = write_tiny_chunks(tmp_path / "chunks", [[5, 6, 7], [8, 9]], LENGTH)
    _write_keys(tmp_path / "keys", other, _keys(2), "another encoder")
    config = _config(folder, tmp_path / "n")
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}

    def find(**changes: Any) -> Callable[[], NeighborStore]:
        return lambda: _find(FindNeighborsConfig(**{**values, **changes}))

    with pytest.raises(MismatchError, match=f"are of evidence {other.fingerprint}"):
        find(embeddings=tmp_path / "keys")()
    database = {"database": tmp_path / "chunks", "database_embeddings": tmp_path / "keys"}
    with pytest.raises(ConfigError, match="groups of two folders are not compared"):
        find(**database)()
    with pytest.raises(MismatchError, match="were made by encoder another encoder"):
        find(**database, retro_own_document="none")()
    with pytest.raises(ConfigError, match="give both or neither"):
        find(database=tmp_path / "chunks")()
    with pytest.raises(DataError, match="no chunk is left to search"):
        find(selection=ChunkSelectionConfig(retro_database_share=1e-9))()
    assert not (tmp_path / "n").exists()


def test_another_database(folder: Path, tmp_path: Path) -> None:
    """Its documents are not those held out, whatever their numbers."""
    chunks = write_tiny_chunks(tmp_path / "chunks", [[5, 6, 7], [8, 9], list(range(9))], LENGTH)
    _write_keys(tmp_path / "keys", chunks, _keys(len(chunks)))
    settings = {"database": tmp_path / "chunks", "database_embeddings": tmp_path / "keys", "retro_own_document": "none"}
    store = _find(_config(folder, tmp_path / "n", selection={"valid_fraction": 0.9}, **settings))
    found = store.rows(np.arange(len(store)), K)
    assert (np.sort(found[:, :5], 1) == np.arange(5)).all()
    assert (found[:, 5:] == -1).all()
    manifest = json.loads((tmp_path / "n" / "manifest.json").read_text())
    assert manifest["database_fingerprint"] == chunks.fingerprint != manifest["chunks_fingerprint"]
