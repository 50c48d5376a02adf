"""What a plan foretells against what happens: evidence is built, embedded and searched at several sizes.

Passages of a file are repeated, under ids of their own and with their words turned round, until there are enough. For
each size the rates are measured first, as `megatron-retrieval plan --measure` does it, then the work itself is done by
the functions behind tools/build_evidence.py, tools/embed_evidence.py and exact search. The encoder is random and tiny,
so that a size ends in minutes. On a machine that other jobs share, hours say as much about these as about the plan:
--clock cpu compares the seconds that the process spends.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import psutil  # type: ignore[import-untyped]
import torch

from megatron_retrieval.applications.plan.config import HardwareConfig, PlanConfig, PlannedTrainingConfig, RatesConfig
from megatron_retrieval.applications.plan.plan import Plan, make_plan
from megatron_retrieval.applications.plan.rates import random_vectors, seconds_of, write_random
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.parser import overlaid
from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.retrieval.embedder import embed_evidence
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.utils.files import atomic_file

_SEARCHES = 3


@dataclass(kw_only=True, frozen=True)
class PlanCheckConfig(Checked):
    """Compare plans with what happens."""

    input: str
    """Passage file whose passages are repeated: psgs_w100.tsv or JSONL."""
    vocab_file: Path
    """WordPiece vocabulary."""
    passages: tuple[PositiveInt, ...] = (100_000, 300_000)
    """Sizes, one after the other."""
    num_layers: int = 1
    """Layers of the encoder."""
    hidden_size: int = 64
    """Width of the encoder and of the vectors."""
    num_attention_heads: int = 2
    """Attention heads."""
    num_queries: int = 64
    """Questions that are searched at once."""
    topk: int = 100
    """Passages that are found for each."""
    num_threads: int = 1
    """Threads."""
    clock: Literal["wall", "cpu"] = "wall"
    """Seconds on the wall, or those that the process spends, which other jobs change less."""
    folder: Path | None = None
    """Where evidence and embeddings are written, and removed again; default: the system's folder for such files."""

    def seconds(self, work: Callable[[], object]) -> float:
        """What `work` takes."""
        return seconds_of(work, self.clock_function)

    @property
    def clock_function(self) -> Callable[[], float]:
        """What --clock names."""
        return time.perf_counter if self.clock == "wall" else time.process_time


@dataclass(frozen=True)
class Real:
    """What happened; bytes and seconds."""

    evidence_bytes: int
    embeddings_bytes: int
    memory_bytes: int
    build_seconds: float
    embed_seconds: float
    search_seconds: float


def main(config: PlanCheckConfig) -> None:
    torch.set_num_threads(config.num_threads)
    for num_passages in config.passages:
        with TemporaryDirectory(dir=config.folder) as name:
            source = Path(name) / "passages.jsonl"
            _write_passages(config, num_passages, source)
            settings = _settings(config, num_passages, source)
            plan = make_plan(settings, config.clock_function)
            real = _work(config, settings, source, Path(name))
        sys.stdout.write(f"{num_passages:,} passages\n\n{_table(plan, real)}\n\n")
        sys.stdout.flush()


def _write_passages(config: PlanCheckConfig, num_passages: int, path: Path) -> None:
    passages = [passage for _, passage in read_passages(config.input)]
    with atomic_file(path) as file:
        for number, passage in enumerate(islice(cycle(passages), num_passages)):
            # after the first round, half of a text and half of another: no two are alike
            other = passages[number * (1 + number // len(passages)) % len(passages)].text.split()
            words = passage.text.split()
            text = " ".join([*words[: len(words) // 2], *other[len(other) // 2 :]])
            file.write(json.dumps({"id": str(number + 1), "title": passage.title, "text": text}) + "\n")


def _settings(config: PlanCheckConfig, num_passages: int, source: Path) -> PlanConfig:
    bert = BertConfig(
        num_layers=config.num_layers, hidden_size=config.hidden_size, num_attention_heads=config.num_attention_heads
    )
    return PlanConfig(
        passages=num_passages,
        encoder=DualEncoderConfig(encoder=bert, biencoder_shared_query_context_model=True),
        hardware=HardwareConfig(gpus=0, workers=1),
        training=PlannedTrainingConfig(reader="none"),
        rates=RatesConfig(measure=True, input=(str(source),), vocab_file=config.vocab_file),
        num_queries=config.num_queries,
        topk=config.topk,
    )


def _work(config: PlanCheckConfig, settings: PlanConfig, source: Path, folder: Path) -> Real:
    """Build and embed all of it; search as many vectors in all directions, for those of random weights are all but the
    same, which no search is made for."""
    vocab_file = str(settings.rates.vocab_file)
    evidence, embeddings = folder / "evidence", folder / "embeddings"
    builder = EvidenceBuilderConfig(input=(str(source),), output=str(evidence), vocab_file=vocab_file)
    build_seconds = config.seconds(lambda: build_evidence(builder))
    embed_seconds = config.seconds(lambda: _embed(settings, evidence, embeddings))
    made = EmbeddingStore(embeddings)
    write_random(folder / "random", made.manifest.identity, made.dimension)
    # in a new process, as this one has memory left over from the work before
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        searched = pool.submit(_search, config, folder / "random", settings.num_queries, settings.topk)
        search_seconds, memory_bytes = searched.result()
    return Real(
        evidence_bytes=_folder_bytes(evidence),
        embeddings_bytes=_folder_bytes(embeddings),
        memory_bytes=memory_bytes,
        build_seconds=build_seconds,
        embed_seconds=embed_seconds,
        search_seconds=search_seconds,
    )


def _search(config: PlanCheckConfig, folder: Path, num_queries: int, topk: int) -> tuple[float, int]:
    """(seconds, bytes of memory) of a search."""
    torch.set_num_threads(config.num_threads)
    store = EmbeddingStore(folder)
    queries = random_vectors(num_queries, store.dimension, -2)
    FlatIndex(queries).search(queries, 1)  # what the libraries take once
    held = psutil.Process().memory_info().rss
    index = FlatIndex(store)
    index.search(queries, topk)  # makes the 8-bit copy
    seconds = statistics.median(config.seconds(lambda: index.search(queries, topk)) for _ in range(_SEARCHES))
    return seconds, psutil.Process().memory_info().rss - held


def _embed(settings: PlanConfig, evidence: Path, output: Path) -> None:
    with process_topology(ParallelConfig(device="cpu")) as topology:
        encoder = DualEncoder(settings.encoder, topology, settings.encode.on(topology.device)).eval()
        job = EmbeddingJob(
            evidence=EvidenceStore(evidence),
            encode=encoder.encode_passages,
            text_format=overlaid(TextFormatConfig(), settings.text_format),
            encoder_fingerprint="random",
            embedding_dtype=settings.embedding_dtype,
            micro_batch_size=settings.encode.micro_batch_size,
        )
        embed_evidence(job, output, topology)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _table(plan: Plan, real: Real) -> str:
    found = plan.estimate
    memory = found.rank_index_bytes + found.rank_mapped_bytes + found.search_buffer_bytes
    pairs = [
        ("evidence on disk, MB", found.evidence_bytes / 1e6, real.evidence_bytes / 1e6),
        ("embeddings on disk, MB", found.version_bytes / 1e6, real.embeddings_bytes / 1e6),
        ("memory of search, MB", memory / 1e6, real.memory_bytes / 1e6),
        ("building, s", found.build_seconds, real.build_seconds),
        ("embedding, s", found.embed_seconds, real.embed_seconds),
        ("a search, s", found.search_seconds, real.search_seconds),
    ]
    rows = [[name, f"{said:.3g}", f"{was:.3g}", f"{said / was - 1:+.1%}"] for name, said, was in pairs]
    return text_table(["", "planned", "real", "difference"], rows)


if __name__ == "__main__":
    run_program(PlanCheckConfig, main)
