"""Exact search over evidence that many ranks hold together, with the same answer as on one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_retrieval.index.api import TensorVectors, VectorSlice, VectorSource
from megatron_retrieval.index.exact.flat import FlatIndex, checked_queries
from megatron_retrieval.index.exact.pair_scores import best_of_pairs, found_pairs
from megatron_retrieval.index.exact.placement import Placement
from megatron_retrieval.parallel.collectives import gather_objects, gather_rows
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.search import SearchResult


class ShardedIndex:
    """Every rank holds a contiguous range of rows; obeys the contract of `SearchIndex`.

    `search` is a collective: all ranks call it together with the same k, each with queries of its own (their number
    may differ, and may be zero). Queries travel to all ranks, each rank searches its rows, and the k best of every
    rank travel back to the rank that asked.

    Args:
        vectors: the whole evidence (a memory-mapped store costs nothing for rows that other ranks hold).
        topology: the ranks; all of them take part, tensor-parallel neighbours as well.
        placement: see `FlatIndex`.
    """

    def __init__(
        self, vectors: VectorSource | Tensor, topology: ProcessTopology, placement: Placement = "auto"
    ) -> None:
        source = TensorVectors(vectors) if isinstance(vectors, Tensor) else vectors
        start, stop = rank_rows(len(source), topology.rank, topology.world_size)
        self._hold(VectorSlice(source, start, stop), start, len(source), topology, placement)

    @classmethod
    def of_parts(cls, part: VectorSource, first_row: int, num_rows: int, topology: ProcessTopology) -> ShardedIndex:
        """An index of which each rank brings its own rows, for vectors that no rank holds all of.

        Args:
            part: this rank's rows, possibly none, from `first_row` on.
            num_rows: over all ranks; each row must be held by exactly one of them.
        """
        index = cls.__new__(cls)
        index._hold(part, first_row, num_rows, topology)
        return index

    def _hold(
        self,
        part: VectorSource,
        first_row: int,
        num_rows: int,
        topology: ProcessTopology,
        placement: Placement = "auto",
    ) -> None:
        self._topology, self._num_rows = topology, num_rows
        self._first_row = first_row
        self._holders: tuple[Tensor, Tensor] | None = None
        self._local = FlatIndex(part, first_row=first_row, device=topology.device, placement=placement)

    @property
    def num_rows(self) -> int:
        return self._num_rows

    @property
    def dimension(self) -> int:
        return self._local.dimension

    @torch.no_grad()
    def search(
        self, queries: Tensor, k: int, exclude_rows: Tensor | None = None, exclude_ranges: Tensor | None = None
    ) -> SearchResult:
        """See `SearchIndex.search`; a collective over all ranks."""
        queries = checked_queries(queries, k, self.dimension)
        if self._topology.world_size == 1:
            return self._local.search(queries, k, exclude_rows, exclude_ranges)
        device, asked_on = self._topology.device, queries.device
        rows = torch.empty(len(queries), 0, dtype=torch.int64) if exclude_rows is None else exclude_rows
        ranges = rows.new_empty(len(queries), 0) if exclude_ranges is None else exclude_ranges.flatten(1)
        wishes = gather_objects((len(queries), rows.size(1), ranges.size(1), k), self._topology.world_group)
        counts, widths, range_widths, ks = (list(values) for values in zip(*wishes, strict=True))
        if len(set(ks)) > 1:
            raise ValueError(f"all ranks must ask for the same k, got {ks}")
        all_queries = self._gather(queries.to(device), counts)
        all_rows = self._gather(_padded(rows.to(device), max(widths), -1), counts) if max(widths) else None
        all_ranges = None
        if width := max(range_widths):
            all_ranges = self._gather(_padded(ranges.to(device), width, 0), counts).view(-1, width // 2, 2)
        found = self._local.search(all_queries, k, all_rows, all_ranges)
        return _merge(self._send_back(found.scores, counts), self._send_back(found.rows, counts), k, asked_on)

    @torch.no_grad()
    def vectors_of(self, rows: Tensor) -> Tensor:
        """The vectors that are searched, whoever holds them; a collective: each rank asks for rows of its own, or for
        none.

        Args:
            rows: [n] int64 rows of the evidence.

        Returns:
            [n, D] float32 on the device of the ranks.
        """
        rows = rows.to(self._topology.device)
        if self._topology.world_size == 1:
            return self._local.vectors_of(rows)
        starts, ranks = self._ranges()
        holder = ranks[torch.bucketize(rows, starts, right=True) - 1]
        order = holder.argsort(stable=True)
        asked = holder.bincount(minlength=self._topology.world_size).tolist()
        answered = [counts[self._topology.rank] for counts in gather_objects(asked, self._topology.world_group)]
        found = self._local.vectors_of(self._exchange(rows[order], asked, answered))
        vectors = self._exchange(found, answered, asked)
        return torch.empty_like(vectors).index_copy_(0, order, vectors)

    def _ranges(self) -> tuple[Tensor, Tensor]:
        """[R] the first rows of the ranges that ranks hold, ascending, and whose they are."""
        if self._holders is None:
            ranges = gather_objects((self._first_row, self._local.num_rows), self._topology.world_group)
            held = sorted((start, rank) for rank, (start, num_rows) in enumerate(ranges) if num_rows)
            columns = torch.tensor(held, device=self._topology.device).view(-1, 2)
            self._holders = columns[:, 0].contiguous(), columns[:, 1]
        return self._holders

    def _exchange(self, values: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """[sum of sent, ...] in the order of the ranks that get them -> [sum of received, ...] from each in turn."""
        target = values.new_empty(sum(received), *values.shape[1:])
        dist.all_to_all_single(target, values.contiguous(), received, sent, group=self._topology.world_group)
        return target

    def _gather(self, rows: Tensor, counts: list[int]) -> Tensor:
        """All ranks' rows in rank order; `counts` of them on each."""
        longest = max(counts)
        padded = torch.cat([rows, rows.new_zeros(longest - len(rows), rows.size(1))])
        gathered = gather_rows(padded, self._topology.world_group).split(longest) if longest else [rows] * len(counts)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])

    def _send_back(self, values: Tensor, counts: list[int]) -> Tensor:
        """[sum of counts, k] found here for every rank's queries -> [W, B, k] found everywhere for this rank's."""
        mine, world_size = counts[self._topology.rank], self._topology.world_size
        return self._exchange(values, counts, [mine] * world_size).view(world_size, mine, values.size(1))


def rank_rows(num_rows: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """The rows start..stop of one rank: contiguous, in rank order, sizes equal or one apart."""
    return num_rows * rank // num_ranks, num_rows * (rank + 1) // num_ranks


def _merge(scores: Tensor, rows: Tensor, k: int, device: torch.device) -> SearchResult:
    """[W, B, k] of every rank -> the k best over all."""
    num_queries = scores.size(1)
    flat = SearchResult(scores.transpose(0, 1).flatten(1), rows.transpose(0, 1).flatten(1))
    best = best_of_pairs(*found_pairs(flat), num_queries, k)
    return SearchResult(best.scores.to(device), best.rows.to(device))


def _padded(values: Tensor, width: int, filler: int) -> Tensor:
    missing = width - values.size(1)
    return torch.cat([values, values.new_full((len(values), missing), filler)], dim=1) if missing else values
