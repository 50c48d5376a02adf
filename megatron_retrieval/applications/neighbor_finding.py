"""Find the neighbours of every chunk in a database of chunks; run again to continue after a stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_retrieval.config.checks import Checked, NonNegativeInt, PositiveInt
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.data.stores.chunk_selection import ChunkSelectionConfig, OwnRows, OwnRule
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.neighbor_writer import NeighborWriter, finish_neighbors
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.evaluation.overlap import shared_runs
from megatron_retrieval.index.approximate.index import ApproximateIndex, ApproximateSearchConfig
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.collectives import gather_objects, on_first_rank
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.retrieval.approximate_neighbors import ApproximateNeighborSearch
from megatron_retrieval.retrieval.neighbor_search import NeighborSearch
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.partial_folder import PartialFolder, partial_folder
from megatron_retrieval.utils.progress import progress_bar

log = get_logger("neighbours")

#: rows searched together, and ranges left out of one such search; the result does not depend on them
BLOCK_ROWS, _RANGES_AT_ONCE = 4096, 1 << 20


@dataclass(kw_only=True, frozen=True)
class FindNeighborsConfig(Checked):
    """Find neighbours. Under torchrun the ranks share the work."""

    chunks: Path
    """Folder of the chunks (build chunks) whose neighbours are wanted."""
    embeddings: Path
    """Their embeddings (embed --chunks)."""
    database: Path | None = None
    """Folder of the chunks to search; default: --chunks."""
    database_embeddings: Path | None = None
    """Embeddings of --database by the same encoder."""
    output: Path
    """Folder of the neighbours to write; unfinished work is kept in OUTPUT.partial."""
    retro_query_num_neighbors_save: PositiveInt = 20
    """Neighbours kept of each chunk; training reads the first ones."""
    retro_own_document: OwnRule = "group"
    """What a chunk is not served: chunks of documents of its group (of the same title, or nearly the same text), of its
    own document alone, or nothing excluded; the first two need chunks that are their own database."""
    selection: ChunkSelectionConfig = field(default_factory=ChunkSelectionConfig)
    """The chunks that are searched."""
    approximate: ApproximateSearchConfig = field(default_factory=ApproximateSearchConfig)
    """An index of the database's embeddings in the place of exact search; distances are exact, as is what is left
    out."""
    recall_sample: NonNegativeInt = 256
    """Chunks whose neighbours are searched exactly as well, to say how many of these --index finds; 0: none."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.database is None) != (self.database_embeddings is None):
            raise ConfigError("--database and --database-embeddings: give both or neither.")
        if self.database is not None and self.retro_own_document != "none":
            raise ConfigError(
                f"--retro-own-document {self.retro_own_document}: groups of two folders are not compared; build one "
                "folder of both inputs, or give --retro-own-document none."
            )


def main(config: FindNeighborsConfig, topology: ProcessTopology) -> None:
    """Write the neighbour folder, which appears when it is complete; a collective.

    Raises:
        DataError: the output exists, nothing is left to search, or a folder is damaged.
        MismatchError: embeddings are of other chunks or another encoder.
    """
    _Finding(config, topology).run()
    log.info("neighbours in %s", config.output)


class _Finding:
    """One search for the neighbours of all chunks."""

    def __init__(self, config: FindNeighborsConfig, topology: ProcessTopology) -> None:
        self._config, self._topology = config, topology
        self._chunks = ChunkStore(config.chunks)
        self._keys = EmbeddingStore(config.embeddings)
        self._keys.require(evidence_fingerprint=self._chunks.fingerprint)
        self._database, self._vectors = self._chunks, self._keys
        if config.database is not None and config.database_embeddings is not None:
            self._database, self._vectors = ChunkStore(config.database), EmbeddingStore(config.database_embeddings)
            encoder = self._keys.manifest.identity.encoder_fingerprint
            self._vectors.require(evidence_fingerprint=self._database.fingerprint, encoder_fingerprint=encoder)
            self._database.require_vocabulary(self._chunks.vocabulary, f"the corpus {config.chunks}")
        self._own = OwnRows(self._chunks, config.retro_own_document)
        self._index = None
        if config.approximate.index is not None:
            # candidates are compared here, by distance
            self._index = ApproximateIndex(replace(config.approximate, rerank_candidates=None), self._vectors)
        self._recall: dict[str, object] = {}

    def run(self) -> None:
        """Search from where an earlier attempt was stopped."""
        with contextlib.ExitStack() as held:
            partial = on_first_rank(
                lambda: held.enter_context(partial_folder(self._config.output, self._settings())),
                self._topology.world_group,
            )
            begun = None if partial is None else (partial.is_published, partial.state)
            is_published, state = gather_objects(begun, self._topology.world_group)[0] or (False, {})
            if not is_published:
                self._search(partial, state)
            if partial is not None:
                partial.discard() if is_published else self._publish(partial)
        self._topology.barrier()

    def _search(self, partial: PartialFolder | None, state: dict[str, Any]) -> None:
        """Search behind the rows that `state` counts; the first rank, which has the folder, writes."""
        ranges = self._config.selection.ranges(self._chunks, self._database)
        if not len(ranges):
            raise DataError(self._database.folder, "no chunk is left to search", hint="Choose a larger share.")
        search = self._opened(ranges)
        begin = state.get("rows", 0)
        with contextlib.ExitStack() as files, progress_bar("neighbours", "chunks", visible=partial is not None) as bar:
            output = None if partial is None else _Output(partial, self._database, files)
            for block in self._blocks(begin):
                parts = gather_objects(self._found(search, search.share(block)), self._topology.world_group)
                if output is not None:
                    output.write(parts)
                bar.update(len(block))
            if output is not None:
                output.save()
        if self._index is not None and self._config.recall_sample:
            self._recall = self._measured(search, ranges)

    def _opened(self, ranges: Rows) -> NeighborSearch:
        sources = self._keys, self._vectors, ranges, self._topology
        if self._index is None:
            return NeighborSearch(*sources)
        return ApproximateNeighborSearch(*sources, self._index, self._config.approximate.rerank_candidates or 0)

    def _measured(self, search: NeighborSearch, ranges: Rows) -> dict[str, object]:
        """Which share of the exact neighbours of some chunks was found; a collective."""
        k, num_rows = self._config.retro_query_num_neighbors_save, len(self._chunks)
        exact = NeighborSearch(self._keys, self._vectors, ranges, self._topology)
        sample = np.linspace(0, num_rows - 1, min(num_rows, self._config.recall_sample)).astype(np.int64)
        share = exact.share(range(len(sample)))
        own = sample[share.start : share.stop]
        keys, excluded = self._keys.vectors_of(torch.from_numpy(own)), self._own.ranges(own)
        expected, found = (searched.nearest(keys, k, excluded).rows for searched in (exact, search))
        is_found = (expected[:, :, None] == found[:, None]).any(2) & (expected >= 0)
        counts = gather_objects((int(is_found.sum()), int((expected >= 0).sum())), self._topology.world_group)
        recall = sum(number for number, _ in counts) / max(1, sum(number for _, number in counts))
        log.info("the index found %.2f %% of the exact neighbours of %s chunks", 100 * recall, f"{len(sample):,}")
        return {"recall_of_exact": recall, "recall_sample": len(sample)}

    def _blocks(self, begin: int) -> Iterator[range]:
        """The rows from `begin` on, fewer at once where many ranges are left out."""
        num_rows = len(self._chunks)
        while begin < num_rows:
            end = min(begin + BLOCK_ROWS, num_rows)
            widest = int(self._own.num_ranges(np.arange(begin, end)).max(initial=1))
            end = min(end, begin + max(1, _RANGES_AT_ONCE // max(1, widest)))
            yield range(begin, end)
            begin = end

    def _found(self, search: NeighborSearch, rows: range) -> tuple[Rows, NDArray[np.float32], Rows]:
        """Rows, distances and overlap, each [n, K]; a collective."""
        numbers = np.arange(rows.start, rows.stop)
        found = search.search(rows, self._config.retro_query_num_neighbors_save, self._own.ranges(numbers))
        overlap = shared_runs(*self._chunks.chunk_tokens(numbers), *self._database.values(found.rows))
        return found.rows, found.distances, overlap

    def _publish(self, partial: PartialFolder) -> None:
        config, keep = self._config, partial.state["file_bytes"]
        partial.keep_only(keep)
        saved = config.retro_query_num_neighbors_save
        origin = {**self._origin(), **self._recall}
        finish_neighbors(partial.contents, self._chunks, self._database, saved, config.selection, origin)
        partial.publish()

    def _origin(self) -> dict[str, object]:
        """What the neighbours depend on beside the chunks and their selection."""
        return {
            "metric": "squared Euclidean distance, exact" if self._index is None else "squared Euclidean distance",
            **({} if self._index is None else {f"index_{name}": value for name, value in self._protocol().items()}),
            "own_document": self._config.retro_own_document,
            "encoder_fingerprint": self._keys.manifest.identity.encoder_fingerprint,
            "embeddings_fingerprint": self._keys.fingerprint,
            "database_embeddings_fingerprint": self._vectors.fingerprint,
        }

    def _protocol(self) -> dict[str, object]:
        """What the candidates of the index depend on."""
        assert self._index is not None
        protocol = {**self._index.protocol(), "rerank_candidates": self._config.approximate.rerank_candidates}
        return {name.removeprefix("index_"): value for name, value in protocol.items()}

    def _settings(self) -> dict[str, object]:
        """Everything that the result depends on."""
        return {
            "the chunks of --chunks": self._chunks.fingerprint,
            "the chunks of --database": self._database.fingerprint,
            "--retro-query-num-neighbors-save": self._config.retro_query_num_neighbors_save,
            **{f"--{flag}": value for flag, value in to_flat_dict(self._config.selection).items()},
            **{f"the {name.replace('_', ' ')}": value for name, value in self._origin().items()},
        }


class _Output:
    """The files of the folder, behind what its journal counts."""

    def __init__(self, partial: PartialFolder, database: ChunkStore, files: contextlib.ExitStack) -> None:
        self._partial, self._num_rows = partial, partial.state.get("rows", 0)
        self._writer = NeighborWriter(partial.contents, database, files, partial.state.get("file_bytes"))
        self.save()

    def write(self, parts: Sequence[tuple[NDArray[Any], ...]]) -> None:
        """Append what the ranks have found, in their order."""
        rows, distances, overlap = (np.concatenate(column) for column in zip(*parts, strict=True))
        self._writer.write(rows, distances, overlap)
        self._num_rows += len(rows)
        self._partial.save_if_due(self._state)

    def save(self) -> None:
        """Note that all that was written counts."""
        self._partial.save(self._state())

    def _state(self) -> dict[str, object]:
        return {"rows": self._num_rows, "file_bytes": self._writer.sync()}
