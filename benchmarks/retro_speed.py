"""Tokens a second of a RETRO in training, with neighbours and without, beside the ratio that counted products give.

python benchmarks/retro_speed.py --output retro_speed.json

All weights are random and trained, on random tokens in float32; both kinds of step take turns.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megatron_retrieval.applications.plan.retro_costs import reading_products, token_products
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.models.retro import Retro, RetroConfig
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.training.steps.retro_step import RetroStep, RetroStepConfig
from megatron_retrieval.types.neighbours import ChunkedTexts, Neighbours
from megatron_retrieval.types.tokens import TokenBatch
from megatron_retrieval.utils.files import write_json
from megatron_retrieval.utils.logging import get_logger

log = get_logger("benchmark")


@dataclass(kw_only=True, frozen=True)
class RetroSpeedConfig(Checked):
    """Time the training of a RETRO with neighbours and without."""

    output: Path
    """JSON file for the results."""
    seq_length: PositiveInt = 512
    """Tokens of a text."""
    num_texts: PositiveInt = 4
    """Texts of a step."""
    retro_num_neighbors: PositiveInt = 2
    """Neighbours of a chunk."""
    turns: PositiveInt = 3
    """Steps of each kind; the median counts."""
    model: RetroConfig = field(default_factory=RetroConfig)
    """Shape; the defaults are SmolLM2-135M's."""


def main(config: RetroSpeedConfig) -> None:
    """Write tokens a second, their ratio, and what products of matrices alone would give."""
    batch = _batch(config)
    without = dataclasses.replace(batch, neighbours=batch.neighbours.rows(torch.zeros(0, dtype=torch.int64)))
    seconds: dict[str, list[float]] = {"with neighbours": [], "without": []}
    with process_topology(ParallelConfig(device="cpu")) as topology:
        model = Retro(config.model, topology, seed=1)
        step = RetroStep(model, RetroStepConfig(micro_batch_size=1), topology, seed=1)
        for turn in range(config.turns + 1):  # the first one warms up
            for name, own in (("with neighbours", batch), ("without", without)):
                model.zero_grad()
                start = time.perf_counter()
                step.forward_backward(own, turn, 1.0)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    plain = token_products(config.model)
    counted = plain / (plain + reading_products(config.model, config.retro_num_neighbors))
    ratio = medians["without"] / medians["with neighbours"]
    result = {
        "tokens_per_second": {name: round(batch.tokens.ids.numel() / own, 1) for name, own in medians.items()},
        "ratio": round(ratio, 3),
        "counted_ratio": round(counted, 3),
        "share_of_counted": round(ratio / counted, 3),
        "load_average": os.getloadavg()[0],
        "num_threads": torch.get_num_threads(),
    }
    write_json(config.output, result)
    log.info("%s", result)


def _batch(config: RetroSpeedConfig) -> ChunkedTexts:
    """Random texts; every full chunk but the last of each has neighbours."""
    shape, generator = config.model, torch.Generator().manual_seed(1)
    ids = torch.randint(shape.vocab_size, (config.num_texts, config.seq_length + 1), generator=generator)
    num_chunks = config.seq_length // shape.retro_chunk_length
    texts = torch.arange(config.num_texts).repeat_interleave(num_chunks)
    starts = (torch.arange(num_chunks) * shape.retro_chunk_length).repeat(config.num_texts)
    size = (len(starts), config.retro_num_neighbors, shape.neighbour_length)
    found = torch.randint(shape.vocab_size, size, generator=generator)
    neighbours = Neighbours(found, torch.full(size[:2], shape.neighbour_length), texts, starts)
    lengths = torch.full((config.num_texts,), config.seq_length)
    return ChunkedTexts(TokenBatch(ids[:, :-1], lengths), ids[:, 1:], neighbours)


if __name__ == "__main__":
    run_program(RetroSpeedConfig, main)
