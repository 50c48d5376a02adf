"""The random streams of dropout."""

from __future__ import annotations

from megatron_retrieval.parallel.megatron_compat import seed_dropout
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.seeds import derive_seed


def start_dropout(seed: int, topology: ProcessTopology, iteration: int, *chunk: str | int) -> None:
    """Start the dropout streams of one forward pass: a function of the seed, the iteration, the rank and the chunk, so
    that a resumed run, or a second pass over the same texts, drops the same."""
    stream = derive_seed(seed, "dropout", iteration, topology.dp_rank, *chunk)
    seed_dropout(stream >> 16, topology.tp_rank)
