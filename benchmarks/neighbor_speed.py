"""Chunks whose nearest keys are found a second, exactly and by squared Euclidean distance, against faiss's flat index.

    python benchmarks/neighbor_speed.py --embeddings KEYS

Nothing is left out of a search here, since faiss cannot leave out other rows for each query: `find neighbors` leaves
out a chunk's own documents as well. Both sides must find the same distances before anything is timed; they take turns.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
from rivals.rounds import Clock, in_turns, medians, ratio_cells

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.errors import ConfigError, MismatchError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.retrieval.neighbor_search import NeighborSearch

#: greatest difference of a squared distance from the other side's, where float32 subtracts from norms
TOLERANCE = 1e-4


@dataclass(kw_only=True, frozen=True)
class NeighborSpeedConfig(Checked):
    """Compare the search for neighbours with faiss's flat index, round by round."""

    embeddings: Path
    """Folder of the chunks' keys (embed --chunks), which are searched and searched for."""
    num_queries: PositiveInt = 4096
    """Chunks of a round, the first ones; `find neighbors` takes as many at once."""
    k: PositiveInt = 20
    """Neighbours of each."""
    num_rounds: PositiveInt = 3
    """Rounds that are timed."""
    num_threads: PositiveInt = 1
    """Threads of each."""
    clock: Clock = "wall"
    """Seconds on the wall, or those that the process spends, which other jobs change less."""


def main(config: NeighborSpeedConfig) -> None:
    """Show chunks a second, and their ratio.

    Raises:
        ConfigError: there are fewer keys than neighbours of a chunk.
        MismatchError: the two find other distances.
    """
    torch.set_num_threads(config.num_threads)
    faiss.omp_set_num_threads(config.num_threads)
    keys = EmbeddingStore(config.embeddings)
    if config.k > len(keys):
        raise ConfigError(f"-k {config.k}: {config.embeddings} holds {len(keys)} keys.")
    queries = keys.read(0, min(config.num_queries, len(keys))).float()
    nothing = np.zeros((len(queries), 0, 2), np.int64)
    flat = faiss.IndexFlatL2(queries.size(1))
    flat.add(keys.read(0, len(keys)).float().numpy())
    with process_topology(ParallelConfig(device="cpu")) as topology:
        search = NeighborSearch(keys, keys, np.array([[0, len(keys)]]), topology)
        sides = partial(search.nearest, queries, config.k, nothing), partial(flat.search, queries.numpy(), config.k)
        ours, (theirs, _) = sides[0]().distances, sides[1]()
        if not (difference := float(np.abs(ours - theirs).max())) < TOLERANCE:
            raise MismatchError(f"squared distances differ by {difference:.2g}; the speeds cannot be compared.")
        seconds = in_turns(sides, config.num_rounds, config.clock)
    rates = (f"{len(queries) / median:,.0f}" for median in medians(seconds))
    header = ["keys", "ours, chunks/s", "faiss, chunks/s", "ratio", "rounds"]
    sys.stdout.write(text_table(header, [[f"{len(keys):,}", *rates, *ratio_cells(seconds)]]) + "\n")


if __name__ == "__main__":
    run_program(NeighborSpeedConfig, main)
