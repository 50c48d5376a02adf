"""The nearest rows of a database by an approximate index of it, without those that are left out."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.index.api import VectorSource
from megatron_retrieval.index.approximate.index import ApproximateIndex
from megatron_retrieval.index.exact.hidden_rows import HiddenRows
from megatron_retrieval.index.exact.sharded import rank_rows
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.neighbor_search import NeighborSearch

#: keys that are searched together: faiss rounds by the number of them, and that must not depend on the ranks
_KEYS_AT_ONCE = 256
#: vectors whose lengths are looked at, and how far these may be from 1
_SAMPLED_VECTORS, _TOLERANCE = 4096, 0.02


class ApproximateNeighborSearch(NeighborSearch):
    """See NeighborSearch; distances are exact, but rows may be missed. Searches are not collectives.

    An index of inner products finds what is nearest where all vectors are of length 1.

    Args:
        index: of `database`.
        num_candidates: rows that it is asked for at least, of which the nearest are taken.

    Raises:
        MismatchError: the vectors of the database have other lengths.
    """

    def __init__(
        self,
        keys: VectorSource,
        database: VectorSource,
        ranges: Rows,
        topology: ProcessTopology,
        index: ApproximateIndex,
        num_candidates: int,
    ) -> None:
        self._keys, self._database, self._topology = keys, database, topology
        self._approximate, self._num_candidates = index, num_candidates
        self._firsts, self._ends = torch.from_numpy(ranges.copy()).T.contiguous()
        sample = torch.linspace(0, len(database) - 1, min(len(database), _SAMPLED_VECTORS)).long()
        lengths = database.vectors_of(sample).float().norm(dim=1)
        if float((lengths - 1).abs().max()) > _TOLERANCE:
            shortest, longest = float(lengths.min()), float(lengths.max())
            raise MismatchError(
                f"--index: vectors have lengths from {shortest:.3g} to {longest:.3g}, and an index of inner products "
                "does not find the nearest of these; embed with an encoder that normalises (--normalize-embeddings), "
                "or leave out --index."
            )

    def share(self, rows: range) -> range:
        """See NeighborSearch; whole groups of keys that are searched together."""
        num_groups = -(-len(rows) // _KEYS_AT_ONCE)
        start, stop = rank_rows(num_groups, self._topology.rank, self._topology.world_size)
        return rows[start * _KEYS_AT_ONCE : stop * _KEYS_AT_ONCE]

    def _candidates(self, keys: Tensor, k: int, excluded: Tensor) -> Tensor:
        """See NeighborSearch."""
        wanted, at_once = max(k, self._num_candidates), _KEYS_AT_ONCE
        parts = [torch.empty(0, wanted, dtype=torch.int64)]
        parts += [
            self._of_group(some, wanted, left_out)
            for some, left_out in zip(keys.split(at_once), excluded.split(at_once), strict=True)
            if len(some)
        ]
        return torch.cat(parts)

    def _of_group(self, keys: Tensor, wanted: int, excluded: Tensor) -> Tensor:
        """[n, wanted]; asks for more of those from which too many are left out, until there are no more."""
        hidden = HiddenRows.of(len(keys), None, excluded, torch.device("cpu"))
        assert hidden is not None
        found = torch.full((len(keys), wanted), -1)
        asking, width = torch.arange(len(keys)), wanted
        while len(asking):
            width = min(2 * width, self._approximate.num_rows)
            rows = self._approximate.search(keys[asking], width).rows
            kept = self._is_searched(rows) & ~hidden.holds(asking, rows)
            is_done = (kept.sum(1) >= wanted) | (rows[:, -1] < 0) | (width == self._approximate.num_rows)
            order = kept[is_done].int().argsort(dim=1, descending=True, stable=True)[:, :wanted]
            best = rows[is_done].gather(1, order).masked_fill(~kept[is_done].gather(1, order), -1)
            found[asking[is_done], : best.size(1)] = best
            asking = asking[~is_done]
        return found

    def _is_searched(self, rows: Tensor) -> Tensor:
        """[...] whether rows, -1 for none, are in the ranges."""
        place = torch.searchsorted(self._firsts, rows.contiguous(), right=True) - 1
        return (place >= 0) & (rows < self._ends[place.clamp(min=0)])
