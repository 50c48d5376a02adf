"""Approximate search by inner product over compressed vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.approximate.faiss import FaissIndex, use_threads
from megatron_retrieval.index.approximate.manifest import INDEX_FILE, ApproximateManifest
from megatron_retrieval.index.exact.flat import checked_queries
from megatron_retrieval.index.exact.hidden_rows import HiddenRows
from megatron_retrieval.index.exact.pair_scores import best_of_pairs, empty_result, pair_scores
from megatron_retrieval.index.exact.placement import Placement
from megatron_retrieval.index.exact.sharded import ShardedIndex
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.types.search import SearchResult

#: candidates rescored exactly at once
_CANDIDATES_AT_ONCE = 1 << 16
#: default of --ef-search
_DEFAULT_EF_SEARCH = 128
_FEWEST_PROBES = 16


@dataclass(kw_only=True, frozen=True)
class ApproximateSearchConfig(Checked):
    """Approximate search."""

    index: Path | None = None
    """Folder of an approximate index of the embeddings (build index) to search; default: exact search."""
    nprobe: PositiveInt | None = None
    """Inverted lists (IVF) searched per question; default: the square root of their number, at least 16."""
    ef_search: PositiveInt | None = None
    """Size of the candidate list of an HNSW search; default: 128."""
    rerank_candidates: PositiveInt | None = None
    """Minimum number of candidates to rescore exactly with the stored vectors; default: keep the index's scores and
    order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("nprobe", "ef_search", "rerank_candidates"):
            if getattr(self, name) is not None and self.index is None:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} is a setting of an approximate index: give --index as well.")


class ApproximateIndex:
    """An index built by `build_index`, complete on every rank that opens it; a `SearchIndex`.

    Rows may be missed, and scores are those of compressed vectors unless candidates are ranked anew; equal scores are
    ordered by row among what was found. Searches are not collectives.

    Args:
        config: its `index` is the folder.
        embeddings: those that the index was built of.

    Raises:
        ConfigError: a setting that this kind of index does not have.
        DataError: unfinished, cut off or damaged.
        MismatchError: the index was built of other embeddings.
    """

    def __init__(self, config: ApproximateSearchConfig, embeddings: EmbeddingStore) -> None:
        if config.index is None:
            raise ValueError("no folder of an index is given")
        self._folder, self._embeddings = config.index, embeddings
        self.manifest = ApproximateManifest.read(self._folder)
        self.manifest.require(embeddings, self._folder)
        self._index = FaissIndex.read(self._folder / INDEX_FILE)
        self._num_candidates = config.rerank_candidates
        self._set_effort(config)
        use_threads(torch.get_num_threads())

    @property
    def num_rows(self) -> int:
        return self.manifest.vectors.num_rows

    @property
    def dimension(self) -> int:
        return self.manifest.vectors.dimension

    def verify(self) -> None:
        """Read the index's file once and compare its checksum; raises DataError."""
        self.manifest.verify(self._folder)

    def protocol(self) -> dict[str, Any]:
        """Settings that the results depend on, for the record."""
        return {
            "index_factory": self.manifest.index_factory,
            "index_checksum": self.manifest.index_checksum,
            **self._effort,
            "rerank_candidates": self._num_candidates,
        }

    @torch.no_grad()
    def search(
        self, queries: Tensor, k: int, exclude_rows: Tensor | None = None, exclude_ranges: Tensor | None = None
    ) -> SearchResult:
        """See `SearchIndex.search`; asks for more than k rows, so that excluded rows do not displace others."""
        asked_on = queries.device
        queries = checked_queries(queries, k, self.dimension).cpu()
        hidden = HiddenRows.of(len(queries), exclude_rows, exclude_ranges, torch.device("cpu"))
        parts = [empty_result(0, k, torch.device("cpu"))]
        if len(queries) and self.num_rows:
            num_hidden = 0 if hidden is None else hidden.most_of_a_query()
            width = min(max(k, self._num_candidates or 0) + num_hidden, self.num_rows)
            at_once = max(1, _CANDIDATES_AT_ONCE // width)
            for start in range(0, len(queries), at_once):
                some = slice(start, start + at_once)
                parts.append(self._search(queries[some], hidden and hidden.of_queries(some), width, k))
        scores, rows = (
            torch.cat(values).to(asked_on) for values in zip(*((p.scores, p.rows) for p in parts), strict=True)
        )
        return SearchResult(scores, rows)

    def _search(self, queries: Tensor, hidden: HiddenRows | None, width: int, k: int) -> SearchResult:
        scores, rows = self._index.search(queries, width)
        kept = rows >= 0
        if hidden is not None:
            kept &= ~hidden.holds(torch.arange(len(queries)), rows)
        query_index, column = kept.nonzero(as_tuple=True)
        scores, rows = scores[query_index, column], rows[query_index, column]
        if self._num_candidates is not None:
            distinct, place = torch.unique(rows, return_inverse=True)
            scores = pair_scores(queries, self._embeddings.vectors_of(distinct).float(), query_index, place)
        return best_of_pairs(query_index, scores, rows, len(queries), k)

    def _set_effort(self, config: ApproximateSearchConfig) -> None:
        factory, num_lists = self.manifest.index_factory, self._index.num_lists
        num_probes, num_followed = config.nprobe, config.ef_search
        if num_probes is not None and num_lists is None:
            raise ConfigError(f"--nprobe: the index in {self._folder} ({factory}) has no inverted file (IVF).")
        if num_followed is not None and not self._index.has_links:
            raise ConfigError(f"--ef-search: the index in {self._folder} ({factory}) has no links (HNSW).")
        if num_lists is not None:
            num_probes = min(num_lists, num_probes or max(_FEWEST_PROBES, math.isqrt(num_lists)))
        if self._index.has_links:
            num_followed = num_followed or _DEFAULT_EF_SEARCH
        self._index.set_effort(num_probes=num_probes, num_followed=num_followed)
        self._effort = {"nprobe": num_probes, "ef_search": num_followed}


def open_index(
    config: ApproximateSearchConfig,
    embeddings: EmbeddingStore,
    topology: ProcessTopology,
    placement: Placement = "auto",
) -> ShardedIndex | ApproximateIndex:
    """What searches the embeddings: all ranks together and exactly, or every rank by an approximate index of its own;
    see `ApproximateIndex` for what is refused."""
    if config.index is None:
        return ShardedIndex(embeddings, topology, placement)
    return ApproximateIndex(config, embeddings)
