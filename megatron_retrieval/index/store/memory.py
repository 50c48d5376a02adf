"""Embeddings in the memory of the ranks that made them, for evidence that is searched once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_retrieval.index.api import TensorVectors
from megatron_retrieval.index.exact.sharded import ShardedIndex, rank_rows
from megatron_retrieval.index.store.embedding_store import StorageDtype, shard_ranges, torch_dtype
from megatron_retrieval.index.store.embedding_writer import default_rows_per_shard, stored_vectors
from megatron_retrieval.index.store.partial_shard import PartialShard
from megatron_retrieval.parallel.topology import ProcessTopology


class MemoryWriter:
    """Keeps shards in memory instead of on disk, each row on one rank.

    Shards are cut as for the disk, so that the vectors are those of megatron-retrieval embed; a copy of the model
    encodes neighbouring shards, and its tensor-parallel ranks keep a part of their rows each.
    """

    def __init__(self, num_rows: int, dimension: int, dtype: StorageDtype, topology: ProcessTopology) -> None:
        self._num_rows, self._dtype, self._topology = num_rows, dtype, topology
        self._ranges = shard_ranges(num_rows, default_rows_per_shard(num_rows))
        first, end = rank_rows(len(self._ranges), topology.dp_rank, topology.dp_size)
        #: numbers of the shards that this copy of the model encodes
        self.shards = list(range(first, end))
        start, stop = (self._first_row(shard) for shard in (first, end))
        mine, mine_end = rank_rows(stop - start, topology.tp_rank, topology.tp_size)
        self._kept = range(start + mine, start + mine_end)
        self._values = torch.empty(len(self._kept), dimension, dtype=torch_dtype(dtype))

    def rows(self, shard: int) -> range:
        """The rows of the evidence in this shard."""
        first, count = self._ranges[shard]
        return range(first, first + count)

    def begin(self, shard: int, batch_sizes: Sequence[int]) -> PartialShard:
        """The partial shard."""
        return PartialShard(None, batch_sizes, torch_dtype(self._dtype))

    def write(self, shard: int, vectors: Tensor) -> None:
        """Keep this rank's part of the vectors [n, D] of one shard.

        Raises:
            MegatronRetrievalError: a vector holds NaN or infinity, or does not fit the type.
        """
        rows = self.rows(shard)
        stored = stored_vectors(vectors, rows, self._dtype)
        start, stop = max(rows.start, self._kept.start), min(rows.stop, self._kept.stop)
        if start < stop:
            self._values[start - self._kept.start : stop - self._kept.start] = stored[
                start - rows.start : stop - rows.start
            ]

    def index(self) -> ShardedIndex:
        """Searches all ranks' rows, once every shard is written."""
        return ShardedIndex.of_parts(TensorVectors(self._values), self._kept.start, self._num_rows, self._topology)

    def _first_row(self, shard: int) -> int:
        return self._ranges[shard][0] if shard < len(self._ranges) else self._num_rows
