"""Approximate indexes against exact search: how much of the exact result they find, in how many bytes and how fast.

Of stored embeddings with the questions of a file, or of random vectors in clusters with queries near them. Every index
is built and opened as a user does it, and searched with all queries at once, three times; the median is shown.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig, read_questions
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.api import SearchIndex
from megatron_retrieval.index.approximate.builder import IndexBuilderConfig, build_index
from megatron_retrieval.index.approximate.faiss import FaissIndex
from megatron_retrieval.index.approximate.index import ApproximateIndex, ApproximateSearchConfig
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.index.store.embedding_store import EmbeddingStore, StoreIdentity
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.reports.tables import percent, text_table
from megatron_retrieval.retrieval.retriever import encode_questions

_SEARCHES = 3


@dataclass(kw_only=True, frozen=True)
class RandomVectorsConfig:
    """Vectors to index where no embeddings are given."""

    random_rows: int = 400_000
    """Random vectors, of length 1, in clusters of unlike sizes."""
    random_clusters: int = 4000
    """Clusters."""
    random_dimension: int = 384
    """Width of the vectors."""


@dataclass(kw_only=True, frozen=True)
class ApproximateIndexesConfig:
    """Compare approximate indexes with exact search."""

    embeddings: Path | None = None
    """Folder of embeddings; default: random vectors."""
    retriever: Path | None = None
    """Checkpoint of the dual encoder that made the embeddings, to encode the questions."""
    questions: Path | None = None
    """Questions that are asked of the embeddings."""
    asked: AskedQuestionsConfig = field(default_factory=AskedQuestionsConfig)
    """Which of them."""
    random: RandomVectorsConfig = field(default_factory=RandomVectorsConfig)
    """What is indexed otherwise."""
    num_queries: int = 500
    """Queries, at most."""
    index_factory: tuple[str, ...] = ("IVF512,Flat", "HNSW32", "IVF512,SQ8", "OPQ48,IVF512,PQ48")
    """What to build, in faiss's words."""
    nprobe: tuple[int, ...] = (4, 16, 64)
    """Lists that are looked at, several numbers one after the other."""
    ef_search: tuple[int, ...] = (32, 128)
    """Candidates that a search along links keeps."""
    rerank_candidates: int = 200
    """Candidates that are ranked by their stored vectors, in a row of its own."""
    topk: tuple[int, ...] = (1, 20, 100)
    """Depths at which the results are compared; the greatest is the number of rows retrieved."""
    num_threads: int = 1
    """Threads of all searches."""

    def __post_init__(self) -> None:
        given = [value is not None for value in (self.embeddings, self.retriever, self.questions)]
        if any(given) and not all(given):
            raise ConfigError("--embeddings, --retriever and --questions belong together: give all three, or none.")


def main(config: ApproximateIndexesConfig) -> None:
    torch.set_num_threads(config.num_threads)
    with TemporaryDirectory() as name:
        store, queries = _random_vectors(config, Path(name)) if config.retriever is None else _embedded(config)
        depth = max(config.topk)
        exact, seconds = _searched(FlatIndex(store), queries, depth)
        row_bytes = store.vectors(0, 1).nbytes
        rows = [_row("exact", "", store, row_bytes * len(store), None, seconds, queries, exact, exact, config)]
        for number, factory in enumerate(config.index_factory):
            folder = Path(name) / str(number)
            built = _seconds(partial(_build, config, store, factory, folder))
            for setting, search in _settings(config, folder, factory, store.dimension):
                index = ApproximateIndex(search, store)
                found, seconds = _searched(index, queries, depth)
                size = index.manifest.index_bytes
                rows.append(_row(factory, setting, store, size, built, seconds, queries, found, exact, config))
                sys.stderr.write(" ".join(rows[-1]) + "\n")
    header = ["index", "search", "MB", "bytes a row", "build, s", "ms a query", *(f"@{k}, %" for k in config.topk)]
    sys.stdout.write(f"{len(store):,} x {store.dimension}, {len(queries):,} queries\n\n{text_table(header, rows)}\n")


def _embedded(config: ApproximateIndexesConfig) -> tuple[EmbeddingStore, Tensor]:
    assert config.embeddings is not None
    assert config.retriever is not None
    assert config.questions is not None
    store = EmbeddingStore(config.embeddings)
    texts = [question.text for question in read_questions(config.questions, config.asked)][: config.num_queries]
    with process_topology(ParallelConfig(device="cpu")) as topology:
        encoder = DUAL_ENCODER.load(config.retriever, topology)
        found = encoder.description
        store.require(encoder_fingerprint=found.fingerprint)
        tokenizer = found.vocabulary()
        encode = encoder.model.encode_queries
        return store, encode_questions(texts, tokenizer, found.layout, encode, device=topology.device)


def _random_vectors(config: ApproximateIndexesConfig, folder: Path) -> tuple[EmbeddingStore, Tensor]:
    """Vectors in clusters whose sizes differ as the frequencies of words do; queries stand near some of them."""
    shape, random = config.random, torch.Generator().manual_seed(0)
    centres = torch.randn(shape.random_clusters, shape.random_dimension, generator=random)
    chances = 1 / torch.arange(10, shape.random_clusters + 10)
    writer = EmbeddingWriter(folder / "vectors", StoreIdentity("random", "random", shape.random_rows, "float16"))
    for shard in writer.unfinished_shards():
        own = torch.multinomial(chances, len(writer.rows(shard)), replacement=True, generator=random)
        noise = torch.randn(len(own), shape.random_dimension, generator=random)
        writer.write(shard, torch.nn.functional.normalize(centres[own] + noise, dim=1))
    store = writer.finish()
    chosen = torch.randperm(len(store), generator=random)[: config.num_queries].sort().values
    near = store.vectors_of(chosen).float()
    noise = torch.randn(near.shape, generator=random) * shape.random_dimension**-0.5
    return store, torch.nn.functional.normalize(near + noise, dim=1)


def _build(config: ApproximateIndexesConfig, store: EmbeddingStore, factory: str, folder: Path) -> None:
    build_index(
        IndexBuilderConfig(
            embeddings=store.directory, index_factory=factory, output=folder, num_threads=config.num_threads
        )
    )


def _settings(
    config: ApproximateIndexesConfig, folder: Path, factory: str, dimension: int
) -> Iterator[tuple[str, ApproximateSearchConfig]]:
    """How an index of this kind is searched, each way with its name."""
    kind = FaissIndex.from_factory(factory, dimension)
    ways: list[dict[str, int]] = [{}]
    if kind.num_lists is not None:
        ways = [{"nprobe": number} for number in config.nprobe if number <= kind.num_lists]
    elif kind.has_links:
        ways = [{"ef_search": number} for number in config.ef_search]
    ways.append({**ways[-1], "rerank_candidates": config.rerank_candidates})
    for way in ways:
        name = ", ".join(f"{key.partition('_')[0]} {value}" for key, value in way.items())
        yield name, ApproximateSearchConfig(index=folder, **way)


def _searched(index: SearchIndex, queries: Tensor, depth: int) -> tuple[Tensor, float]:
    """(rows that are found, median seconds)."""
    rows = index.search(queries, depth).rows  # warms up
    return rows, statistics.median(_seconds(lambda: index.search(queries, depth)) for _ in range(_SEARCHES))


def _row(
    name: str,
    setting: str,
    store: EmbeddingStore,
    num_bytes: int,
    built: float | None,
    seconds: float,
    queries: Tensor,
    found: Tensor,
    exact: Tensor,
    config: ApproximateIndexesConfig,
) -> list[str]:
    return [
        name,
        setting,
        f"{num_bytes / 1e6:.1f}",
        f"{num_bytes / len(store):.1f}",
        "" if built is None else f"{built:.1f}",
        f"{1000 * seconds / len(queries):.2f}",
        *(percent(_shared(found[:, :k], exact[:, :k])) for k in config.topk),
    ]


def _shared(found: Tensor, exact: Tensor) -> float:
    """Share of the exact rows that are found."""
    return float((exact[:, :, None] == found[:, None, :]).any(dim=2).float().mean())


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_program(ApproximateIndexesConfig, main)
