"""Evaluate a RETRO: bits per byte of documents with their neighbours, without, and with others in their place."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.checkpoint.kinds.kind import Loaded
from megatron_retrieval.checkpoint.kinds.retro import RETRO
from megatron_retrieval.config.checks import Checked, NonNegativeInt, PositiveInt
from megatron_retrieval.config.parser import write_config
from megatron_retrieval.data.examples.neighbour_arms import ArmName, choose_on, choose_random, choose_swapped
from megatron_retrieval.data.examples.retro import chosen_documents
from megatron_retrieval.data.examples.retro_windows import RetroWindows
from megatron_retrieval.data.layouts.lengths import require_positions
from megatron_retrieval.data.stores.chunks import ChunkStore, SectionChoice
from megatron_retrieval.data.stores.neighbors import NeighborStore, Split
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.intervals import Interval
from megatron_retrieval.evaluation.language_modelling import Arm, ChunkCosts, chunk_costs, token_costs
from megatron_retrieval.evaluation.retrieval_results import METRICS
from megatron_retrieval.models.retro import Retro, RetroConfig
from megatron_retrieval.parallel.precision import DtypeConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.recipes.retro_pretraining import require_chunks
from megatron_retrieval.reports.retro_page import PAGE, write_retro_page
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.training.run_record import RunRecord
from megatron_retrieval.utils.files import atomic_file, write_json

#: one line for every scored chunk
CHUNKS = "chunks.jsonl"
#: shares of a chunk's tokens that stand in a row in one of its own neighbours, up to which chunks are counted
OVERLAPS = (0.125, 0.25, 0.5, 1.0)
#: neighbours that a chunk may share tokens with (arXiv 2112.04426, section 2.6)
OVERLAP_NEIGHBOURS = 10


@dataclass(kw_only=True, frozen=True)
class RetroEvaluateConfig(Checked):
    """Evaluate a RETRO by bits per byte."""

    checkpoint: Path
    """Checkpoint of the RETRO."""
    retro_chunks: Path
    """Folder of the chunk store to score."""
    retro_neighbors: tuple[Path, ...]
    """Folder of the neighbours of its chunks, and of further ones to compare with (a share of the database, its own
    documents allowed); each of these is an arm by its folder's name, which no other has."""
    arms: tuple[ArmName, ...] = ("on", "off", "swapped", "random")
    """What the model reads: its neighbours, nothing, those of a chunk of another document, chunks drawn from the
    database."""
    retro_num_neighbors: tuple[PositiveInt, ...] = (2,)
    """Neighbours that are read for a chunk; with further numbers `on` is measured with these as well."""
    documents: Split = "valid"
    """Which documents are scored: those held out from training and from the database, or those of training."""
    retro_sections: SectionChoice = "all"
    """Of texts cut into sections, score those of this parity alone."""
    max_documents: PositiveInt | None = None
    """Score only so many, at equal distances; default: all."""
    seq_length: PositiveInt = 2048
    """Longest window of a document in tokens, a multiple of the chunk length."""
    stride: PositiveInt | None = None
    """Tokens from one window to the next, a multiple of the chunk length; default: half of --seq-length."""
    micro_batch_size: PositiveInt = 2
    """Windows per forward pass; memory and speed depend on it, the result does not."""
    seed: int = 1234
    """Names the neighbours that are exchanged and drawn."""
    output_dir: Path
    """Folder for metrics.json, chunks.jsonl, examples.html, config.yaml and run_record.json."""
    num_examples: NonNegativeInt = 30
    """Chunks that examples.html shows, those of the greatest and least gain; 0: no such page."""
    precision: DtypeConfig = field(default_factory=DtypeConfig)
    """Number format."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [*get_args(ArmName), *(_with_k(number) for number in self.retro_num_neighbors[1:])]
        for path in self.retro_neighbors[1:]:
            if path.name in names:
                raise ConfigError(
                    f"--retro-neighbors {path}: {path.name!r} is the name of another arm, and each further folder is "
                    "one by its name; give the folder, or a link to it, another name."
                )
            names.append(path.name)


@dataclass(frozen=True)
class _Data:
    """What is scored, and the ways to do it."""

    chunks: ChunkStore
    neighbors: NeighborStore
    windows: RetroWindows
    arms: dict[str, Arm]


def main(config: RetroEvaluateConfig, topology: ProcessTopology) -> None:
    """Score all documents in all arms; leaves the figures in `--output-dir`."""
    record = RunRecord(config, topology.world_size)
    loaded = RETRO.load(config.checkpoint, topology, config.precision.on(topology.device))
    data = _open(config, loaded)
    costs = token_costs(loaded.model, data.windows, data.arms, config.micro_batch_size, topology)
    if topology.is_main:
        found = chunk_costs(data.chunks, data.windows, costs, _shared(data))
        metrics = _metrics(config, data, found)
        write_json(config.output_dir / METRICS, metrics)
        _write_chunks(config.output_dir / CHUNKS, data, found)
        write_config(config, config.output_dir / "config.yaml")
        if config.num_examples and {"on", "off"} <= data.arms.keys():
            chosen = _telling(found, config.num_examples)
            write_retro_page(config.output_dir / PAGE, data.chunks, data.neighbors, data.windows, costs, chosen)
        record.write(config.output_dir)
        sys.stdout.write(_table(metrics) + "\n")


def _open(config: RetroEvaluateConfig, loaded: Loaded[RetroConfig, None, Retro]) -> _Data:
    chunks, shape = ChunkStore(config.retro_chunks), loaded.description.shape
    require_chunks(chunks, shape, loaded.description)
    stride = config.stride or max(config.seq_length // 2, chunks.chunk_length)
    for flag, length in (("--seq-length", config.seq_length), ("--stride", stride)):
        if length % chunks.chunk_length or length > config.seq_length:
            raise ConfigError(
                f"{flag} {length} must be a multiple of the chunks' {chunks.chunk_length} tokens, and a stride at "
                "most a window."
            )
    require_positions(shape.max_positions, seq_length=config.seq_length)
    stores = [NeighborStore(path, chunks) for path in config.retro_neighbors]
    for store in stores:
        if (most := max(config.retro_num_neighbors)) > store.num_saved:
            raise ConfigError(f"--retro-num-neighbors {most}: {store.folder} holds {store.num_saved} of each chunk.")
    documents = chosen_documents(stores[0], config.documents, config.retro_sections)
    if config.max_documents is not None:
        documents = documents[:: max(1, len(documents) // config.max_documents)][: config.max_documents]
    windows = RetroWindows(chunks, documents, config.seq_length, stride)
    if not windows.num_labels:
        raise ConfigError(f"--documents {config.documents}: {config.retro_neighbors[0]} has none with two tokens.")
    return _Data(chunks, stores[0], windows, _arms(config, stores, windows))


def _arms(config: RetroEvaluateConfig, stores: list[NeighborStore], windows: RetroWindows) -> dict[str, Arm]:
    """The ways to use the model, by name."""
    store, (k, *others) = stores[0], config.retro_num_neighbors
    on = choose_on(store)
    arms: dict[str, Arm] = {}
    for name in config.arms:
        choose = None
        if name == "on":
            choose = on
        elif name == "swapped":
            choose = choose_swapped(store, windows.retrieving_rows(), config.seed)
        elif name == "random":
            choose = choose_random(store, config.seed)
        arms[name] = Arm(choose, store.database, k)
    arms |= {_with_k(number): Arm(on, store.database, number) for number in others}
    further = zip(config.retro_neighbors[1:], stores[1:], strict=True)
    return arms | {path.name: Arm(choose_on(other), other.database, k) for path, other in further}


def _with_k(number: int) -> str:
    """The arm that reads another number of neighbours."""
    return f"on, k {number}"


def _shared(data: _Data) -> NDArray[np.int64]:
    """[rows of the store] most tokens in a row that a chunk has in common with one of its own neighbours."""
    rows = np.unique(data.windows.rows)
    k = min(OVERLAP_NEIGHBOURS, data.neighbors.num_saved)
    shared = np.zeros(len(data.chunks), np.int64)
    shared[rows] = data.neighbors.overlap(rows, k).max(1)
    return shared


def _metrics(config: RetroEvaluateConfig, data: _Data, found: ChunkCosts) -> dict[str, Any]:
    length = data.chunks.chunk_length
    first_rows = data.chunks.documents[data.chunks.document_of(found.rows)]
    parts = {
        "all": found,
        "behind the first chunk": found.where(found.rows > first_rows),
        **{f"overlap up to {share:g}": found.where(found.shared <= share * length) for share in OVERLAPS[:-1]},
    }
    parts = {name: part for name, part in parts.items() if part.num_bytes.sum() > 0}
    baselines = [name for name in ("off", "swapped", "random") if name in data.arms]
    pairs = [(base, name) for base in baselines for name in data.arms if name not in baselines]
    return {
        "num_documents": len(np.unique(data.chunks.document_of(found.rows))),
        "num_chunks": len(found.rows),
        "num_tokens": data.windows.num_labels,
        "num_bytes": int(found.num_bytes.sum()),
        "checkpoint": str(config.checkpoint),
        "database_share": data.neighbors.selection.retro_database_share,
        "bits_per_byte": {
            name: {part: _figures(costs.bits_per_byte(name)) for part, costs in parts.items()} for name in data.arms
        },
        "differences": {
            f"{name} - {base}": {
                part: {**_figures(costs.difference(base, name)), "better": _verdict(costs.difference(base, name))}
                for part, costs in parts.items()
            }
            for base, name in pairs
        },
    }


def _figures(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "ci95": [interval.low, interval.high]}


def _verdict(difference: Interval) -> str:
    """Whether fewer bits per byte are shown."""
    return "shown" if difference.high < 0 else "contradicted" if difference.low > 0 else "not shown"


def _telling(found: ChunkCosts, num_examples: int) -> NDArray[np.int64]:
    """Rows of the chunks that gain most and least, half of either, in the store's order."""
    order = np.argsort(found.nats["on"] - found.nats["off"], kind="stable")
    half = num_examples // 2
    return np.unique(found.rows[np.concatenate([order[: num_examples - half], order[len(order) - half :]])])


def _write_chunks(path: Path, data: _Data, found: ChunkCosts) -> None:
    documents = data.chunks.document_of(found.rows)
    with atomic_file(path) as file:
        for place, row in enumerate(found.rows.tolist()):
            line = {
                "row": row,
                "document": int(documents[place]),
                "num_bytes": int(found.num_bytes[place]),
                "shared_tokens": int(found.shared[place]),
                "nats": {name: round(float(values[place]), 5) for name, values in found.nats.items()},
            }
            file.write(json.dumps(line) + "\n")


def _table(metrics: dict[str, Any]) -> str:
    """Bits per byte by arm, and the differences, with their 95 % intervals."""
    rows = [[name, *_cells(parts["all"], "")] for name, parts in metrics["bits_per_byte"].items()]
    rows += [[name, *_cells(parts["all"], "+")] for name, parts in metrics["differences"].items()]
    counts = f"{metrics['num_documents']:,} documents, {metrics['num_chunks']:,} chunks, {metrics['num_bytes']:,} bytes"
    return f"{counts}\n\n{text_table(['', 'bits per byte', '95 % interval'], rows)}"


def _cells(figures: dict[str, Any], sign: str) -> list[str]:
    low, high = figures["ci95"]
    return [f"{figures['mean']:{sign}.4f}", f"{low:{sign}.4f} to {high:{sign}.4f}"]
