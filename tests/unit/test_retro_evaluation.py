"""Texts, windows and arms that a RETRO reads, and bits per byte of what it costs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from megatron_retrieval.applications.retro_evaluation import RetroEvaluateConfig
from megatron_retrieval.data.examples.neighbour_arms import choose_random, choose_swapped
from megatron_retrieval.data.examples.retro import retro_batch
from megatron_retrieval.data.examples.retro_texts import texts_of
from megatron_retrieval.data.examples.retro_windows import RetroWindows, cut
from megatron_retrieval.data.stores.neighbors import NeighborStore
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.intervals import ratio_interval
from megatron_retrieval.evaluation.language_modelling import ChunkCosts
from megatron_retrieval.testing.tiny_retro import write_tiny_chunks, write_tiny_neighbors

M = 4
#: numbers of tokens of documents; their chunks are rows 0 to 2, 3, 4 to 5, 6, 7 to 10
LENGTHS = (10, 3, 8, 1, 14)
NUM_ROWS = 11


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> NeighborStore:
    folder = tmp_path_factory.mktemp("retro")
    documents = [[100 + 20 * number + place for place in range(n)] for number, n in enumerate(LENGTHS)]
    chunks = write_tiny_chunks(folder / "chunks", documents, M)
    rows = np.array([[4, 7], [8, -1], [4, 5], [0, 1], [0, 8], [1, 2], [4, -1], [4, 0], [-1, -1], [5, 2], [3, 3]])
    return write_tiny_neighbors(folder / "neighbors", chunks, rows)


def test_sequences_become_texts_of_one_document_each(store: NeighborStore) -> None:
    rows = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, -1]])
    batch = retro_batch(store, rows, 2)
    texts = texts_of(batch, batch.neighbor_mask.flatten(2).any(2))
    # each without the last token of its document, from which nothing is predicted
    assert texts.tokens.lengths.tolist() == [9, 2, 7, 4, 9]
    assert [texts.tokens.ids[row, 0].item() for row in range(5)] == [100, 120, 140, 180, 184]
    assert texts.labels[0, :9].tolist() == list(range(101, 110))
    assert texts.labels[3, :4].tolist() == [181, 182, 183, 184]  # the last one from the next sequence
    assert (texts.labels >= 0).sum(1).tolist() == texts.tokens.lengths.tolist()
    found = texts.neighbours
    # of row 8 nothing was found; rows 2, 3, 5, 6 and 10 end their documents
    assert list(zip(found.texts.tolist(), found.starts.tolist(), strict=True)) == [
        (0, 0), (0, 4), (2, 0), (3, 0), (4, 4)
    ]  # fmt: skip
    assert found.lengths.tolist() == [[8, 8], [8, 0], [8, 8], [8, 8], [4, 2]]
    assert found.ids[0, 0].tolist() == list(range(140, 148))


def test_every_token_but_the_first_is_scored_once(store: NeighborStore) -> None:
    for num_tokens in range(40):
        scored = [token for window in cut(0, num_tokens, 12, 8, 0) for token in range(window.first, window.last + 1)]
        assert scored == list(range(1, num_tokens))
        assert all(window.last - window.start <= 12 for window in cut(0, num_tokens, 12, 8, 0))
    windows = RetroWindows(store.chunks, np.array([0, 3, 4]), 8, 4)
    assert windows.rows.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 7, 7, 7, 8, 8, 8, 8, 9, 9, 9, 9, 10, 10]
    texts, places, rows = windows.texts(np.arange(len(windows)))
    assert sorted(places.tolist()) == list(range(windows.num_labels))
    tokens = np.concatenate([np.arange(101, 110), np.arange(181, 194)])
    assert texts.labels[texts.labels >= 0].tolist() == tokens[places].tolist()
    assert rows.tolist() == [0, 1, 1, 7, 8, 8, 9, 9]
    assert bool(store.chunks.goes_on(rows).all())


def test_arms_read_texts_of_other_groups(store: NeighborStore) -> None:
    chunks = store.chunks
    rows = np.flatnonzero(chunks.goes_on(np.arange(NUM_ROWS)))
    groups = chunks.groups[chunks.document_of(rows)]
    swapped = choose_swapped(store, rows, 1)(rows, 2)
    own = [store.rows(np.array(row), 2).tolist() for row in rows]
    for row, group, found in zip(rows, groups, swapped, strict=True):
        of_others = [n for n, other in zip(own, groups, strict=True) if other != group]
        cleaned = [[-1 if n >= 0 and chunks.groups[chunks.document_of(np.array(n))] == group else n for n in other]
                   for other in of_others]  # fmt: skip
        assert found.tolist() in cleaned, row
    drawn = choose_random(store, 1)(np.arange(NUM_ROWS), 6)
    is_found = drawn >= 0
    drawn_groups = chunks.groups[chunks.document_of(drawn.clip(0))]
    assert not (is_found & (drawn_groups == chunks.groups[chunks.document_of(np.arange(NUM_ROWS))][:, None])).any()
    assert set(drawn[is_found].tolist()) <= set(range(NUM_ROWS))
    assert len(set(drawn[is_found].tolist())) > NUM_ROWS // 2


@pytest.mark.parametrize("further", [["a/books", "b/books"], ["a/on"], ["a/on, k 4"]])
def test_an_arm_has_a_name_of_its_own(further: list[str]) -> None:
    def config(*paths: str) -> RetroEvaluateConfig:
        places = {"checkpoint": Path("ck"), "retro_chunks": Path("chunks"), "output_dir": Path("out")}
        neighbors = tuple(map(Path, ("a/own", *paths)))
        return RetroEvaluateConfig(**places, retro_neighbors=neighbors, retro_num_neighbors=(2, 4))

    config("a/books", "b/own")
    with pytest.raises(ConfigError, match=f"--retro-neighbors {further[-1]}: .* is the name of another arm"):
        config(*further)


def test_bits_per_byte_by_hand() -> None:
    costs = -np.log([0.5, 0.25, 0.125])
    assert float(costs.sum() / math.log(2) / 9) == pytest.approx(6 / 9)
    nats = np.array([6.0, 1.0]) * math.log(2)
    chunks = ChunkCosts(
        np.arange(2), np.arange(2), np.array([8.0, 4.0]), np.array([0, 64]), {"on": nats, "off": nats * 2}
    )
    assert chunks.bits_per_byte("on").mean == pytest.approx(7 / 12)
    assert chunks.where(chunks.shared <= 8).bits_per_byte("on").mean == pytest.approx(0.75)
    assert chunks.difference("off", "on").mean == pytest.approx(-7 / 12)


def test_intervals_of_ratios() -> None:
    random = np.random.default_rng(1)
    sizes = random.integers(50, 500, 200).astype(np.float64)
    values = sizes * 0.9 + random.normal(0, 20, 200)
    found = ratio_interval(values, sizes)
    assert found.mean == pytest.approx(values.sum() / sizes.sum())
    residuals = values - found.mean * sizes
    width = 2 * 1.96 * math.sqrt((residuals**2).sum()) / sizes.sum()
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    with pytest.raises(ValueError, match="undefined"):
        ratio_interval(values[:0], sizes[:0])
    assert found.low < found.mean < found.high
