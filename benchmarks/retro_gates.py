"""Which layers of a language model would gain from neighbours, before any training: how fast the loss falls as each
layer's own attention, turned to the neighbours, is let in.

    python benchmarks/retro_gates.py --pretrained-checkpoint SMOLLM2 --retro-chunks CHUNKS \\
        --retro-neighbors NEIGHBORS --retro-sections odd --output retro_gates.json

Attention to neighbours starts as the self-attention of its layer behind a closed gate (`--retro-cca-init
self-attention`). The slope of the loss in that gate says what opening it is worth at first, in nats a token; the slope
for exchanged neighbours says how much of that is not owed to what they hold. The `--retro-cross-attention-layers` of a
training are chosen among the layers whose difference is below zero.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from megatron_retrieval.checkpoint.kinds.registry import describe
from megatron_retrieval.checkpoint.kinds.retro import RETRO
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.examples.neighbour_arms import Choose, choose_on, choose_swapped
from megatron_retrieval.data.examples.retro import RetroDataset
from megatron_retrieval.data.examples.retro_texts import RetroTexts
from megatron_retrieval.data.stores.chunks import ChunkStore, SectionChoice
from megatron_retrieval.data.stores.neighbors import NeighborStore
from megatron_retrieval.models.chunked_attention import ChunkedCrossAttention
from megatron_retrieval.models.retro import Retro, RetroConfig
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.recipes.retro_pretraining import require_chunks
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.training.steps.retro_step import RetroStep, RetroStepConfig
from megatron_retrieval.utils.files import write_json
from megatron_retrieval.utils.progress import progress_bar

SEED = 1
DECODER = "stack.decoder.layers."


@dataclass(kw_only=True, frozen=True)
class RetroGatesConfig(Checked):
    """Measure what opening each layer's gate to neighbours is worth at first."""

    pretrained_checkpoint: str = field(metadata=INPUT)
    """Checkpoint of a causal language model."""
    retro_chunks: str = field(metadata=INPUT)
    """Folder of the chunk store."""
    retro_neighbors: str = field(metadata=INPUT)
    """Folder of the neighbours of its chunks."""
    retro_sections: SectionChoice = "all"
    """Of texts cut into sections, read those of this parity alone."""
    seq_length: PositiveInt = 512
    """Tokens of a sequence, a multiple of the chunk length."""
    retro_num_neighbors: PositiveInt = 2
    """Neighbours that are read for a chunk."""
    retro_encoder_num_layers: PositiveInt = 2
    """Layers of the encoder of neighbours, which are the model's first."""
    retro_cross_attention_layers: tuple[int, ...] = ()
    """Layers to look at, counted from 1; default: all."""
    num_sequences: PositiveInt = 24
    """Sequences to read, at equal distances."""
    output: Path
    """JSON file for the slopes of every sequence."""


def main(config: RetroGatesConfig) -> None:
    """Write the slopes, and show their means."""
    chunks, start = ChunkStore(config.retro_chunks), describe(config.pretrained_checkpoint, RETRO.starts_from)
    neighbors = NeighborStore(config.retro_neighbors, chunks)
    new = _new_parts(config, chunks.chunk_length, start.shape.num_layers)
    shape = dataclasses.replace(RETRO.shape_from(start, new), hidden_dropout=0.0, attention_dropout=0.0)
    require_chunks(chunks, shape, start)
    swapped = choose_swapped(neighbors, np.flatnonzero(chunks.goes_on(np.arange(len(chunks)))), SEED)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        model = Retro(shape, topology, seed=SEED)
        RETRO.start(model, start, topology)
        step = RetroStep(model, RetroStepConfig(micro_batch_size=1), topology, SEED)
        arms = {"on": choose_on(neighbors), "swapped": swapped}
        slopes = {arm: _slopes(config, step, arm, _texts(config, neighbors, choose)) for arm, choose in arms.items()}
    write_json(config.output, slopes)
    _report(slopes)


def _texts(config: RetroGatesConfig, neighbors: NeighborStore, choose: Choose) -> RetroTexts:
    length, k = config.seq_length, config.retro_num_neighbors
    sequences = RetroDataset(
        neighbors, seq_length=length, num_neighbors=k, sections=config.retro_sections, choose=choose, seed=SEED
    )
    return RetroTexts(sequences, drop=0.0, seed=SEED)


def _slopes(config: RetroGatesConfig, step: RetroStep, arm: str, texts: RetroTexts) -> list[dict[str, float]]:
    """By layer, of each sequence."""
    chosen = np.linspace(0, len(texts) - 1, min(config.num_sequences, len(texts))).astype(int).tolist()
    gates, slopes = _only_gates(step.model), []
    with progress_bar(f"neighbours {arm}", "sequences", len(chosen)) as bar:
        for index in chosen:
            step.model.zero_grad()
            step.forward_backward(texts.batch([index], 0, 0), 0, 1.0)
            slopes.append({layer: 0.0 if gate.grad is None else float(gate.grad) for layer, gate in gates.items()})
            bar.update()
    return slopes


def _report(slopes: dict[str, list[dict[str, float]]]) -> None:
    rows = []
    for layer in slopes["on"][0]:
        on, swapped = ([own[layer] for own in slopes[arm]] for arm in ("on", "swapped"))
        differences = [a - b for a, b in zip(on, swapped, strict=True)]
        rows.append([layer, *_mean_and_error(on), *_mean_and_error(differences)])
    header = ["layer", "slope, nats a token", "standard error", "less that of exchanged neighbours", "standard error"]
    sys.stdout.write(text_table(header, rows) + "\n")


def _new_parts(config: RetroGatesConfig, chunk_length: int, num_layers: int) -> RetroConfig:
    return RetroConfig(
        retro_chunk_length=chunk_length,
        retro_cca_init="self-attention",
        retro_cross_attention_layers=config.retro_cross_attention_layers or tuple(range(1, num_layers + 1)),
        retro_encoder_num_layers=config.retro_encoder_num_layers,
        retro_encoder_hidden_dropout=0.0,
        retro_encoder_attention_dropout=0.0,
    )


def _only_gates(model: nn.Module) -> dict[str, nn.Parameter]:
    """The gates of the decoder's layers, counted from 1, which alone have a gradient."""
    model.requires_grad_(False)
    gates = {}
    for name, module in model.named_modules():
        if isinstance(module, ChunkedCrossAttention) and name.startswith(DECODER) and module.gate is not None:
            gates[str(int(name.removeprefix(DECODER).split(".")[0]) + 1)] = module.gate.requires_grad_()
    return gates


def _mean_and_error(values: list[float]) -> tuple[str, str]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):+.4f}", f"{error:.4f}"


if __name__ == "__main__":
    run_program(RetroGatesConfig, main)
