"""Passages embedded a second, against sentence-transformers with the same weights and texts.

sentence-transformers computes with any of its backends, in float32 by torch as it comes. It gets the texts; the project
takes the tokens that the evidence keeps. All take turns, and a round's ratio is that of neighbours: what other jobs
take from the machine meets all.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rivals.embedding import Backend, open_backend
from rivals.rounds import in_turns, medians, ratio_cells
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.checkpoint.kinds.dual_encoder import LoadedDualEncoder, load_encoder_for
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError, MismatchError
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.retrieval.encode_batches import EncodeConfig, encode_sequences

#: cosine of a passage's two vectors, below which they are not those of one model
LEAST_COSINE = 0.999


@dataclass(kw_only=True, frozen=True)
class EmbeddingSpeedConfig(Checked):
    """Compare the speed of embedding with sentence-transformers, round by round."""

    evidence: Path
    """Folder of the evidence (tools/build_evidence.py)."""
    retriever: Path
    """Checkpoint imported from the model (tools/import_checkpoint.py --format sentence-transformers)."""
    model: Path
    """Folder of the model as sentence-transformers reads it."""
    backends: tuple[Backend, ...] = ("float32", "bfloat16")
    """What sentence-transformers computes with; all are compared with float32 by torch, which comes first."""
    num_passages: PositiveInt = 1024
    """Passages embedded in a round, spread over the evidence."""
    num_rounds: PositiveInt = 5
    """Rounds that are timed."""
    num_threads: PositiveInt = 2
    """Threads of each, on CPU."""
    clock: Literal["wall", "cpu"] = "wall"
    """Seconds on the wall, or those that the process spends, which other jobs change less."""
    encode: EncodeConfig = field(default_factory=lambda: EncodeConfig(dtype="auto"))
    """How the project's encoder is run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backends[:1] != ("float32",):
            raise ConfigError(
                f"--backends {' '.join(self.backends)}: float32 comes first, the others are compared with it."
            )


def main(config: EmbeddingSpeedConfig) -> None:
    torch.set_num_threads(config.num_threads)
    with process_topology(ParallelConfig()) as topology:
        evidence = EvidenceStore(config.evidence)
        rows = np.linspace(0, len(evidence) - 1, config.num_passages).astype(np.int64)
        texts = [f"{passage.title} {passage.text}" for passage in evidence.passages(rows)]
        encoder = load_encoder_for(evidence, config.retriever, topology, config.encode.on(topology.device))
        device = topology.device
        arms = {"megatron-retrieval": partial(_embed, evidence, encoder, rows, config.encode.micro_batch_size, device)}
        for backend in config.backends:
            model = open_backend(backend, config.model, texts, config.num_threads).to(device)
            arms[f"sentence-transformers, {backend}"] = partial(_encode, model, texts)
        vectors = {name: embed() for name, embed in arms.items()}  # warms up
        rounds = in_turns(list(arms.values()), config.num_rounds, config.clock)
        seconds = dict(zip(arms, zip(*rounds, strict=True), strict=True))
    _report(config.num_passages, vectors, seconds)


def _embed(
    evidence: EvidenceStore, encoder: LoadedDualEncoder, rows: np.ndarray, micro_batch_size: int, device: torch.device
) -> Tensor:
    form = encoder.description.layout
    tokens = evidence.tokens(rows, form)
    return encode_sequences(tokens, encoder.model.encode_passages, micro_batch_size, device)


def _encode(model: SentenceTransformer, texts: list[str]) -> Tensor:
    vectors: Tensor = model.encode(texts, convert_to_tensor=True)
    return vectors.float().cpu()


def _least_cosine(some: Tensor, others: Tensor) -> float:
    return float(F.cosine_similarity(some, others).min())


def _report(num_passages: int, vectors: dict[str, Tensor], seconds: dict[str, tuple[float, ...]]) -> None:
    ours, reference, *_ = vectors
    cosines = {name: _least_cosine(part, vectors[reference]) for name, part in vectors.items()}
    if cosines[ours] < LEAST_COSINE:
        raise MismatchError(
            f"--retriever and --model give vectors with a cosine of {cosines[ours]:.4f}: are they one model?"
        )
    rows = []
    for name, taken in seconds.items():
        pairs = list(zip(seconds[ours], taken, strict=True))
        rate = f"{num_passages / medians(pairs)[1]:.0f}"
        rows.append([name, rate, *ratio_cells(pairs), f"{cosines[name]:.6f}"])
    header = ["", "passages/s, median", "ratio", "rounds", "least cosine with float32"]
    sys.stdout.write(text_table(header, rows) + "\n")


if __name__ == "__main__":
    run_program(EmbeddingSpeedConfig, main)
