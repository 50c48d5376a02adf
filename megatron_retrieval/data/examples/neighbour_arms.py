"""What a model reads in the place of what was retrieved for its chunks, to see what the neighbours' contents do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.data.stores.neighbors import NeighborStore
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.utils.seeds import fractions

ArmName = Literal["on", "off", "swapped", "random"]

#: [...] rows of chunks and k -> [..., k] rows of the database that are read for them, -1 for none
Choose = Callable[[Rows, int], Rows]


def choose_on(neighbors: NeighborStore) -> Choose:
    """The neighbours."""
    return neighbors.rows


def choose_swapped(neighbors: NeighborStore, retrieving: Rows, seed: int) -> Choose:
    """The neighbours of a chunk of another group of documents: texts of the same kind, each as often as without the
    exchange; none in the place of one of the chunk's own group.

    Args:
        retrieving: rows of the chunks among which neighbours are exchanged.

    Raises:
        ConfigError: all are of one group.
    """
    chunks = neighbors.chunks
    partner = np.arange(len(chunks))
    partner[retrieving] = exchanged(retrieving, chunks.groups[chunks.document_of(retrieving)], seed)
    return lambda rows, k: _of_other_groups(neighbors, rows, neighbors.rows(partner[rows], k))


def exchanged(rows: Rows, groups: NDArray[np.int32], seed: int) -> Rows:
    """For each of the rows another one, of another group: the next such one in an order that `seed` names.

    Raises:
        ConfigError: all are of one group.
    """
    if len(np.unique(groups)) < 2:
        raise ConfigError("neighbours cannot be swapped: all chunks are of one group of documents.")
    order = np.argsort(fractions(rows, seed, "swapped neighbours"), kind="stable")
    found, open_places = np.full(len(rows), -1, np.int64), np.arange(len(rows))
    step = 1
    while len(open_places):
        others = order[(open_places + step) % len(rows)]
        fits = groups[others] != groups[order[open_places]]
        found[order[open_places[fits]]] = rows[others[fits]]
        open_places, step = open_places[~fits], step + 1
    return found


def choose_random(neighbors: NeighborStore, seed: int) -> Choose:
    """Chunks of the database that are drawn for each chunk; none in the place of one of its own group."""
    ranges = neighbors.database_ranges
    ends = np.cumsum(ranges[:, 1] - ranges[:, 0])

    def choose(rows: Rows, k: int) -> Rows:
        numbers = rows[..., None] * np.int64(k) + np.arange(k)
        drawn = (fractions(numbers, seed, "random neighbours") * ends[-1]).astype(np.int64)
        place = np.searchsorted(ends, drawn, side="right")
        return _of_other_groups(neighbors, rows, ranges[place, 1] - (ends[place] - drawn))

    return choose


def _of_other_groups(neighbors: NeighborStore, rows: Rows, found: Rows) -> Rows:
    """[..., k] rows of the database without those of the chunks' own groups."""
    chunks, database = neighbors.chunks, neighbors.database
    is_own = chunks.groups[chunks.document_of(rows)][..., None] == database.groups[database.document_of(found)]
    return np.where(is_own & (database.fingerprint == chunks.fingerprint), -1, found)
