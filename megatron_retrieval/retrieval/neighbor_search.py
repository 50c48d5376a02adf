"""The nearest rows of a database for chunks of a corpus, over all ranks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.index.api import VectorSource
from megatron_retrieval.index.exact.sharded import ShardedIndex, rank_rows
from megatron_retrieval.index.selected_rows import SelectedRows
from megatron_retrieval.index.squared_distance import SquaredDistanceVectors, distance_queries, squared_distances
from megatron_retrieval.parallel.topology import ProcessTopology

#: found vectors that are measured at once
_VECTORS_AT_ONCE = 1 << 12


class Neighbors(NamedTuple):
    """Of n chunks.

    Attributes:
        rows: [n, K] int64 rows of the database, the nearest first, the lower one of equally near ones; -1 behind the
            last one.
        distances: [n, K] float32 squared distances, infinite there.
    """

    rows: Rows
    distances: NDArray[np.float32]


class NeighborSearch:
    """Exact search by squared Euclidean distance; the same answer on any number of ranks.

    Args:
        keys: of the corpus.
        database: vectors of all rows of the database.
        ranges: [R, 2] ranges of rows that are searched, ascending and apart; at least one.
        topology: the ranks; all of them take part.
    """

    def __init__(self, keys: VectorSource, database: VectorSource, ranges: Rows, topology: ProcessTopology) -> None:
        self._keys, self._database, self._topology = keys, database, topology
        self._selected = SelectedRows(database, torch.from_numpy(np.ascontiguousarray(ranges)))
        self._index = ShardedIndex(SquaredDistanceVectors(self._selected), topology)

    def share(self, rows: range) -> range:
        """This rank's part of some rows of the corpus."""
        start, stop = rank_rows(len(rows), self._topology.rank, self._topology.world_size)
        return rows[start:stop]

    def search(self, rows: range, k: int, excluded: Rows) -> Neighbors:
        """The neighbours of this rank's rows of the corpus; a collective.

        Args:
            rows: consecutive ones, or none.
            k: neighbours of each.
            excluded: [n, R, 2] ranges of rows of the database that are none of theirs.
        """
        return self.nearest(self._keys.read(rows.start, rows.stop), k, excluded)

    def nearest(self, keys: Tensor, k: int, excluded: Rows) -> Neighbors:
        """The same of keys [n, D]."""
        keys = keys.float()
        found = self._candidates(keys, k, torch.from_numpy(excluded))
        distances = self._distances(keys, found)
        # what was rounded in the search may have swapped two that are all but equally near
        order = found.argsort(dim=1, stable=True)
        order = order.gather(1, distances.gather(1, order).argsort(dim=1, stable=True))[:, :k]
        return Neighbors(found.gather(1, order).numpy(), distances.gather(1, order).numpy())

    def _candidates(self, keys: Tensor, k: int, excluded: Tensor) -> Tensor:
        """[n, K or more] rows of the database, -1 for none."""
        ranges = self._selected.numbers(excluded)
        return self._selected.rows(self._index.search(distance_queries(keys), k, exclude_ranges=ranges).rows)

    def _distances(self, keys: Tensor, rows: Tensor) -> Tensor:
        """[n, D] and [n, K] -> [n, K] float32."""
        parts = [torch.empty(0, rows.size(1))]
        at_once = max(1, _VECTORS_AT_ONCE // rows.size(1))
        for some_keys, some_rows in zip(keys.split(at_once), rows.split(at_once), strict=True):
            vectors = self._database.vectors_of(some_rows.clamp(min=0).flatten())
            parts.append(squared_distances(some_keys, vectors.unflatten(0, some_rows.shape)).float())
        return torch.cat(parts).masked_fill(rows < 0, torch.inf)
