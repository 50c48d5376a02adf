"""Sequences of chunks with their neighbours: which token follows which, who retrieves what, and for whom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_retrieval.data.examples.retro import RetroDataset, retro_batch
from megatron_retrieval.data.stores.chunk_selection import ChunkSelectionConfig, OwnRows
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.neighbors import NeighborStore
from megatron_retrieval.errors import ConfigError, DataError, MismatchError
from megatron_retrieval.testing.tiny_retro import write_tiny_chunks, write_tiny_neighbors

#: of 10, 4, 1 and 8 tokens: rows 0 to 2, 3, 4 and 5 to 6 of four tokens each
DOCUMENTS = [list(range(10, 20)), [30, 31, 32, 33], [40], list(range(50, 58))]
#: two of each row; the last row of the store, the first, none behind a real one
ROWS = np.array([[6, 3], [4, -1], [0, 0], [0, 1], [5, 6], [2, 0], [-1, -1]])


@pytest.fixture
def neighbors(tmp_path: Path) -> NeighborStore:
    chunks = write_tiny_chunks(tmp_path / "chunks", DOCUMENTS, 4)
    return write_tiny_neighbors(tmp_path / "neighbors", chunks, ROWS)


def test_a_hand_made_batch(neighbors: NeighborStore) -> None:
    """Two sequences of three chunks: the first within a document, the second over three."""
    batch = retro_batch(neighbors, np.array([[0, 1, 2], [5, 3, 4]]), 2)
    assert batch.tokens.tolist() == [[*range(10, 20), 0, 0], [50, 51, 52, 53, 30, 31, 32, 33, 40, 0, 0, 0]]
    assert batch.labels.tolist() == [
        [*range(11, 20), -1, -1, -1],
        [51, 52, 53, 54, 31, 32, 33, -1, -1, -1, -1, -1],  # 54 is of the row that is not in the sequence
    ]
    assert batch.documents.tolist() == [[0, 0, 0], [3, 1, 2]]
    assert batch.chunk_bytes.tolist() == [[4, 4, 2], [4, 4, 1]]
    assert batch.first_bytes.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert tuple(batch.neighbor_tokens.shape) == (2, 3, 2, 8)
    # rows 6 and 3 have no continuation; rows 2, 3 and 4 end their documents, so that they retrieve nothing
    assert batch.neighbor_mask.sum(3).tolist() == [[[4, 4], [1, 0], [0, 0]], [[2, 8], [0, 0], [0, 0]]]
    assert batch.neighbor_tokens[0, 0].tolist() == [[54, 55, 56, 57, 0, 0, 0, 0], [30, 31, 32, 33, 0, 0, 0, 0]]
    assert batch.neighbor_tokens[1, 0].tolist() == [[18, 19, 0, 0, 0, 0, 0, 0], list(range(10, 18))]
    assert not batch.neighbor_tokens[~batch.neighbor_mask].any()


def test_no_neighbour_is_no_row(neighbors: NeighborStore) -> None:
    """-1 modulo the number of rows would be the last row, and the first its continuation."""
    found = np.full((1, 3, 2), -1)
    batch = retro_batch(neighbors, np.array([[0, 1, -1]]), 2, found)
    assert not batch.neighbor_mask.any()
    assert batch.documents.tolist() == [[0, 0, -1]]
    assert (batch.labels[0, 8:] == -1).all()
    assert batch.chunk_bytes.tolist() == [[4, 4, 0]]


def test_every_row_stands_once_and_keeps_its_neighbours(neighbors: NeighborStore) -> None:
    """Whatever the length of sequences, the seed and the batch."""
    known: dict[int, list[int]] = {}
    for seq_length in (4, 8, 12, 40):
        for seed in (1, 2):
            dataset = RetroDataset(neighbors, seq_length=seq_length, num_neighbors=2, seed=seed)
            rows = np.concatenate([dataset.rows(index) for index in range(len(dataset))])
            assert sorted(rows[rows >= 0].tolist()) == list(range(7))
            batch = dataset.batch(range(len(dataset)), 0, 0)
            for row, ids in zip(rows.tolist(), batch.neighbor_tokens.flatten(0, 1).tolist(), strict=True):
                assert row < 0 or known.setdefault(row, ids) == ids
    documents = [batch.documents for batch in (dataset.batch([0], epoch, 0) for epoch in (0, 1))]
    assert torch.equal(*documents)


def test_ranks_share_a_batch(neighbors: NeighborStore) -> None:
    dataset = RetroDataset(neighbors, seq_length=8, num_neighbors=1, seed=1)
    whole = dataset.batch([2, 0, 1], 0, 0)
    first, second = (dataset.batch([2, 0, 1], 0, 0, rank, 2) for rank in range(2))
    for name, values in vars(whole).items():
        assert torch.equal(torch.cat([getattr(first, name), getattr(second, name)])[:3], values), name
    filler = second.rows(torch.tensor([1]))
    assert (filler.labels == -1).all()
    assert (filler.documents == -1).all()
    assert not filler.neighbor_mask.any()
    assert len(second) == 2


def test_without_neighbours_none_are_read(neighbors: NeighborStore) -> None:
    batch = RetroDataset(neighbors, seq_length=8, num_neighbors=0, seed=1).batch([0], 0, 0)
    assert batch.neighbor_tokens.shape == (1, 2, 0, 8)


def test_what_does_not_fit_is_refused(neighbors: NeighborStore) -> None:
    with pytest.raises(ConfigError, match="--seq-length 10: must be a multiple of 4"):
        RetroDataset(neighbors, seq_length=10, num_neighbors=2, seed=1)
    with pytest.raises(ConfigError, match=r"--retro-num-neighbors 3: .* holds 2 of each chunk"):
        RetroDataset(neighbors, seq_length=8, num_neighbors=3, seed=1)
    with pytest.raises(DataError, match="no document of the split 'valid'"):
        RetroDataset(neighbors, seq_length=8, num_neighbors=2, split="valid", seed=1)


def test_neighbours_of_other_chunks_are_refused(neighbors: NeighborStore, tmp_path: Path) -> None:
    others = write_tiny_chunks(tmp_path / "others", DOCUMENTS[:2], 4)
    for chunks, database, whose in ((others, None, "chunks"), (neighbors.chunks, others, "database")):
        with pytest.raises(MismatchError, match=f"have {whose} {neighbors.chunks.fingerprint}, but"):
            NeighborStore(neighbors.folder, chunks, database)
    assert neighbors.chunks.fingerprint != write_tiny_chunks(tmp_path / "longer", DOCUMENTS, 5).fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [([7, 0], "no row of the database"), ([-2, -2], "no row of the database"), ([-1, 3], "behind the place of none")],
)
def test_numbers_that_are_no_rows_are_refused(neighbors: NeighborStore, damage: list[int], message: str) -> None:
    with open(neighbors.folder / "rows", "r+b") as file:
        file.write(np.array(damage, "<i4").tobytes())
    with pytest.raises(DataError, match=message):
        neighbors.rows(np.array([0]), 2)
    (neighbors.folder / "rows").write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes instead of 56"):
        NeighborStore(neighbors.folder, neighbors.chunks)


def _many(folder: Path) -> ChunkStore:
    random = np.random.default_rng(0)
    return write_tiny_chunks(folder, [random.integers(2, 300, size=9).tolist() for _ in range(200)], 4)


def test_shares_are_nested_and_hold_no_group_held_out(tmp_path: Path) -> None:
    chunks = _many(tmp_path / "chunks")
    rows: set[int] = set()
    for share in (0.1, 0.3, 1.0):
        selection = ChunkSelectionConfig(valid_fraction=0.2, retro_database_share=share)
        ranges = selection.ranges(chunks, chunks)
        searched = {row for first, end in ranges.tolist() for row in range(first, end)}
        assert rows < searched
        rows = searched
        assert 0.5 * share < len(searched) / (0.8 * len(chunks)) < 1.5 * share
    held_out = np.flatnonzero(selection.is_held_out(chunks))
    assert 20 < len(held_out) < 60
    assert rows.isdisjoint(row for d in held_out for row in range(*chunks.documents[d : d + 2].tolist()))
    assert (ranges[1:, 0] > ranges[:-1, 1]).all()
    neighbors = write_tiny_neighbors(tmp_path / "n", chunks, np.zeros((len(chunks), 1), np.int64), selection)
    assert neighbors.documents("valid").tolist() == held_out.tolist()
    assert np.array_equal(neighbors.database_ranges, ranges)
    train = RetroDataset(neighbors, seq_length=4, num_neighbors=0, seed=1)
    assert {int(train.rows(index)[0]) for index in range(len(train))} == rows


def test_files_are_held_out_with_their_groups(tmp_path: Path) -> None:
    """Group 1 is in both files; --retro-search-valid searches what is evaluated elsewhere."""
    random, folder = np.random.default_rng(0), tmp_path / "chunks"
    texts = [random.integers(2, 300, size=9).tolist() for _ in range(4)]
    chunks = write_tiny_chunks(folder, [texts[0], texts[1], texts[2], texts[1], texts[3]], 4, sources=[0, 0, 0, 1, 1])
    selection = ChunkSelectionConfig(valid_fraction=0, valid_inputs=(1,))
    assert selection.is_held_out(chunks).tolist() == [False, True, False, True, True]
    assert selection.ranges(chunks, chunks).tolist() == [[0, 3], [6, 9]]
    searched = ChunkSelectionConfig(valid_fraction=0, valid_inputs=(1,), retro_search_valid=True)
    assert searched.ranges(chunks, chunks).tolist() == [[0, 15]]
    neighbors = write_tiny_neighbors(tmp_path / "n", chunks, np.zeros((15, 1), np.int64), searched)
    assert (neighbors.selection, neighbors.documents("valid").tolist()) == (searched, [1, 3, 4])


def test_only_chunks_with_a_continuation(tmp_path: Path) -> None:
    chunks = write_tiny_chunks(tmp_path / "chunks", DOCUMENTS, 4)
    selection = ChunkSelectionConfig(valid_fraction=0, retro_require_continuation=True)
    assert selection.ranges(chunks, chunks).tolist() == [[0, 2], [5, 6]]


def test_what_a_chunk_is_not_served(tmp_path: Path) -> None:
    documents = [list(range(9)), [20] * 5, list(range(9)), [30], [20] * 5, [20] * 5]
    chunks = write_tiny_chunks(tmp_path / "chunks", documents, 4)
    assert chunks.groups.tolist() == [0, 1, 0, 2, 1, 1]
    rows = np.array([0, 3, 8, 9])
    expected = {
        "group": [[[0, 3], [5, 8]], [[3, 5], [9, 13]], [[8, 9], [0, 0]], [[3, 5], [9, 13]]],
        "document": [[[0, 3]], [[3, 5]], [[8, 9]], [[9, 11]]],
        "none": [[], [], [], []],
    }
    for rule, ranges in expected.items():
        own = OwnRows(chunks, rule)  # type: ignore[arg-type]
        assert own.ranges(rows).tolist() == ranges
        assert own.ranges(rows[:0]).shape[0] == 0
