"""Continue texts with a RETRO, which searches behind every full chunk, the prompt's and its own."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.checkpoint.kinds.dual_encoder import LoadedDualEncoder, load_encoder
from megatron_retrieval.checkpoint.kinds.kind import Loaded
from megatron_retrieval.checkpoint.kinds.retro import RETRO
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.exact.sharded import ShardedIndex
from megatron_retrieval.index.squared_distance import SquaredDistanceVectors, distance_queries
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.models.retro import Retro, RetroConfig
from megatron_retrieval.models.retro_generation import RetroSources
from megatron_retrieval.parallel.precision import DtypeConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.recipes.retro_pretraining import require_chunks
from megatron_retrieval.reports.retro_page import PAGE, write_continuations
from megatron_retrieval.retrieval.chunk_passages import key_tokens
from megatron_retrieval.utils.files import atomic_file, read_lines

CONTINUATIONS = "continuations.jsonl"


@dataclass(kw_only=True, frozen=True)
class RetroGenerateConfig(Checked):
    """Continue texts with a RETRO."""

    checkpoint: Path
    """Checkpoint of the RETRO."""
    prompts: Path
    """File with one text to continue a line."""
    chunks: Path
    """Folder of the chunks that are searched (build chunks)."""
    embeddings: Path
    """Their embeddings (embed --chunks)."""
    retriever: Path
    """Checkpoint of the dual encoder that made them."""
    retro_num_neighbors: PositiveInt = 2
    """Neighbours that are read for a chunk."""
    output: Path
    """Folder for continuations.jsonl and examples.html: texts, and what was read for each of their chunks."""
    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(max_answer_length=128))
    """How tokens are chosen."""
    precision: DtypeConfig = field(default_factory=DtypeConfig)
    """Number format."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""


class ChunkSearch:
    """Finds the neighbours of chunks that are not in the database; a collective over all ranks.

    Attributes:
        chunks: the database.
        found: rows of the database that were read for chunks, by these' tokens; -1 for none.
    """

    def __init__(
        self,
        chunks: ChunkStore,
        embeddings: EmbeddingStore,
        encoder: LoadedDualEncoder,
        k: int,
        topology: ProcessTopology,
    ) -> None:
        self.chunks, self._encoder, self._k, self._topology = chunks, encoder, k, topology
        self._vocabulary = encoder.description.vocabulary()
        self._index = ShardedIndex(SquaredDistanceVectors(embeddings), topology)
        self.found: dict[tuple[int, ...], list[int]] = {}

    @torch.no_grad()
    def __call__(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """See `Retrieve`."""
        layout, model = self._encoder.description.layout, self._encoder.model
        tokens = key_tokens(chunks.tolist(), self.chunks.vocabulary, self._vocabulary, layout)
        keys = model.encode_passages(tokens.to(self._topology.device)).float().cpu()
        rows: Rows = self._index.search(distance_queries(keys), self._k).rows.cpu().numpy()
        self.found |= zip(map(tuple, chunks.tolist()), rows.tolist(), strict=True)
        ids, is_real = self.chunks.values(rows)
        return torch.from_numpy(ids), torch.from_numpy(is_real.sum(2))


def main(config: RetroGenerateConfig, topology: ProcessTopology) -> None:
    """Continue every prompt by itself; a collective over all ranks, each of which holds a part of the database."""
    dtype = config.precision.on(topology.device)
    loaded = RETRO.load(config.checkpoint, topology, dtype)
    chunks, embeddings = ChunkStore(config.chunks), EmbeddingStore(config.embeddings)
    require_chunks(chunks, loaded.description.shape, loaded.description)
    encoder = load_encoder(config.retriever, topology, dtype)
    embeddings.require(evidence_fingerprint=chunks.fingerprint, encoder_fingerprint=encoder.description.fingerprint)
    search = ChunkSearch(chunks, embeddings, encoder, config.retro_num_neighbors, topology)
    lines = [line.rstrip("\r\n") for line in read_lines(config.prompts) if line.strip()]
    written = [_continued(line, loaded, search, config, topology) for line in lines]
    if topology.is_main:
        with atomic_file(config.output / CONTINUATIONS) as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in written)
        write_continuations(config.output / PAGE, written)
        sys.stdout.writelines(f"{record['prompt']}{record['continuation']}\n" for record in written)


def _continued(
    prompt: str,
    loaded: Loaded[RetroConfig, None, Retro],
    search: ChunkSearch,
    config: RetroGenerateConfig,
    topology: ProcessTopology,
) -> dict[str, Any]:
    """One line of the file."""
    vocabulary = loaded.description.vocabulary()
    ids = vocabulary.encode([prompt])[0]
    longest = loaded.description.shape.max_position_embeddings - config.generation.max_answer_length
    if not 0 < len(ids) <= longest:
        raise ConfigError(f"{config.prompts}: a prompt has {len(ids)} tokens, where 1 to {longest} can be continued.")
    search.found.clear()
    sources = RetroSources(loaded.model, torch.tensor([ids]), vocabulary.special.end, search)
    best = generate(sources, config.generation, topology.groups.tp, [prompt]).best
    written = best.ids[0, : int(best.lengths[0])].tolist()
    return {
        "prompt": prompt,
        "continuation": vocabulary.decode([written])[0],
        "score": float(best.scores[0]),
        "chunks": list(_read_chunks(search, ids + written)),
    }


def _read_chunks(search: ChunkSearch, ids: list[int]) -> Iterator[dict[str, Any]]:
    """The chunks of a text behind which something was read, what that was, and how many tokens the text then has in
    common with the beginning of what follows each neighbour."""
    chunks, length = search.chunks, search.chunks.chunk_length
    for start in range(0, len(ids) - length + 1, length):
        if (rows := search.found.get(tuple(ids[start : start + length]))) is None:
            continue  # the text ends with it
        behind = ids[start + length : start + 2 * length]
        found = [_neighbour(chunks, row, behind) for row in rows if row >= 0]
        yield {"text": chunks.vocabulary.decode([ids[start : start + length]])[0], "neighbours": found}


def _neighbour(chunks: ChunkStore, row: int, behind: list[int]) -> dict[str, Any]:
    """One row of the database; `copied` is the beginning of its continuation that was written as well."""
    ids, is_token = chunks.values(np.array(row))
    length = chunks.chunk_length
    own, following = ids[:length][is_token[:length]].tolist(), ids[length:][is_token[length:]].tolist()
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(following, behind, strict=False))
    num_copied = sum(1 for _ in same)
    parts = own, following[:num_copied], following[num_copied:]
    text, copied, rest = chunks.vocabulary.decode(parts)
    title = chunks.title(int(chunks.document_of(np.array(row))))
    return {"row": row, "title": title, "text": text, "copied": copied, "rest": rest, "copied_tokens": num_copied}
