"""How fast a machine builds, encodes, trains and searches, measured here with the project's own code."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.column_folder import values_file
from megatron_retrieval.data.stores.evidence import TEXT_COLUMNS, EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.data.stores.evidence_sample import EvidenceSample
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.index.store.embedding_store import EmbeddingStore, StorageDtype, StoreIdentity
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter, default_rows_per_shard
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.embedder import embed_evidence
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.retrieval.encode_batches import EncodePassagesConfig
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.types.tokens import by_length
from megatron_retrieval.utils.files import atomic_file

#: passages that are built, and those that show how many can be within the seconds beside them
_FEW_PASSAGES, _MOST_PASSAGES, _PART_SECONDS = 1000, 50_000, 15.0
_FEW_ENCODED, _TRAINED_AT_ONCE = 64, 32
#: rows searched, the more of them beyond a CPU's caches where the evidence is, and how often
_FEW_ROWS, _MANY_ROWS, _MANY_COORDINATES, _SEARCHES = 1 << 16, 1 << 18, 1 << 26, 3
_WRITTEN_BYTES = 1 << 27


@dataclass(frozen=True, kw_only=True)
class MeasuredRates:
    """What one process does in a second, and what passages of the sample are like.

    Attributes:
        build_start_seconds: that building takes before the first passage.
        train_passages_per_second: forward and backward, without an optimizer.
        search_rows_per_second: compared with all questions of a batch.
        search_start_seconds: fixed time of a search.
        text_bytes, text_tokens: see `plan_costs.evidence_bytes`.
    """

    build_passages_per_second: float
    build_start_seconds: float
    encode_passages_per_second: float
    train_passages_per_second: float
    search_rows_per_second: float
    search_start_seconds: float
    disk_bytes_per_second: float
    text_bytes: float
    text_tokens: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What is measured: the work that is planned, on a part of it.

    Attributes:
        inputs: passage files; their first passages are built and encoded.
        num_passages: of the whole evidence, which decides how it is cut into shards.
        num_queries: questions that are searched at once.
        clock: seconds; those of the process, on one thread, say what a machine takes that others do not share.
    """

    inputs: tuple[str, ...]
    vocab_file: Path
    lower_case: bool
    encoder: DualEncoderConfig
    text_format: TextFormatConfig
    encode: EncodePassagesConfig
    embedding_dtype: StorageDtype
    num_passages: int
    num_queries: int
    topk: int
    clock: Callable[[], float] = time.perf_counter

    def measure(self, topology: ProcessTopology) -> MeasuredRates:
        """Build, encode, train, search and write for about a minute.

        Raises:
            ConfigError: there are too few passages to measure anything.
        """
        with TemporaryDirectory() as name:
            folder = Path(name)
            start, build_rate, evidence = self._build(folder)
            # random weights take as long as others
            model = DualEncoder(self.encoder, topology, self.encode.on(topology.device))
            encode_rate = self._encode(evidence, folder, model.eval(), topology)
            train_rate = self._train(evidence, model.train(), topology.device)
            search_start, search_rate = self._search(folder, topology.device)
            text_bytes = sum((evidence.folder / values_file(column)).stat().st_size for column in TEXT_COLUMNS)
            columns = evidence.token_columns(range(len(evidence)))
            return MeasuredRates(
                build_passages_per_second=build_rate,
                build_start_seconds=start,
                encode_passages_per_second=encode_rate,
                train_passages_per_second=train_rate,
                search_rows_per_second=search_rate,
                search_start_seconds=search_start,
                disk_bytes_per_second=_WRITTEN_BYTES / self._seconds(lambda: _write(folder / "written")),
                text_bytes=text_bytes / len(evidence),
                text_tokens=sum(len(column.values) for column in columns) / len(evidence),
            )

    def _seconds(self, work: Callable[[], object]) -> float:
        return seconds_of(work, self.clock)

    def _build(self, folder: Path) -> tuple[float, float, EvidenceStore]:
        """(seconds before the first passage, passages a second, the evidence)."""
        passages = list(islice(self._passages(), _MOST_PASSAGES))
        if len(passages) < 2 * _FEW_PASSAGES:
            raise ConfigError(
                f"--input holds {len(passages):,} passages; at least {2 * _FEW_PASSAGES:,} are needed to measure."
            )
        few = self._build_some(folder / "few", passages[:_FEW_PASSAGES])
        many = round(_FEW_PASSAGES * _PART_SECONDS / few)
        many = min(len(passages), max(many, 2 * _FEW_PASSAGES))
        seconds = self._build_some(folder / "many", passages[:many])
        rate, start = _line(_FEW_PASSAGES, few, many, seconds)
        return start, rate, EvidenceStore(folder / "many")

    def _build_some(self, output: Path, passages: list[Passage]) -> float:
        source = output.with_suffix(".jsonl")
        with atomic_file(source) as file:
            file.writelines(json.dumps(vars(passage)) + "\n" for passage in passages)
        config = EvidenceBuilderConfig(
            input=(str(source),), output=str(output), vocab_file=str(self.vocab_file), lower_case=self.lower_case
        )
        return self._seconds(lambda: build_evidence(config))

    def _passages(self) -> Iterator[Passage]:
        for path in self.inputs:
            for _, passage in read_passages(path):
                yield passage

    def _encode(self, evidence: EvidenceStore, folder: Path, model: DualEncoder, topology: ProcessTopology) -> float:
        """Passages a second, on their way to the disk."""
        outputs = (folder / name for name in ("warm-up", "few-vectors", "vectors"))

        def encode(num_passages: int) -> object:
            job = EmbeddingJob(
                evidence=EvidenceSample(evidence, num_passages),
                encode=model.encode_passages,
                text_format=self.text_format,
                encoder_fingerprint="random",
                embedding_dtype=self.embedding_dtype,
                micro_batch_size=self.encode.micro_batch_size,
            )
            rows_per_shard = min(num_passages, default_rows_per_shard(self.num_passages))
            return embed_evidence(job, next(outputs), topology, rows_per_shard=rows_per_shard)

        return self._passages_per_second(encode, len(evidence))

    def _train(self, evidence: EvidenceStore, model: DualEncoder, device: torch.device) -> float:
        """Passages a second, forward and backward."""

        def train(num_passages: int) -> object:
            tokens = EvidenceSample(evidence, num_passages).tokens(range(num_passages), self.text_format)
            total = torch.zeros((), device=device)
            for batch in by_length(tokens.lengths, _TRAINED_AT_ONCE, longest_first=True):
                loss = model.encode_passages(tokens.rows(batch).to(device)).float().sum()
                loss.backward()
                total += loss.detach()
            return total.item()  # waits for the device

        return self._passages_per_second(train, len(evidence))

    def _passages_per_second(self, work: Callable[[int], object], most: int) -> float:
        """Of work on so many passages, as many as take about `_PART_SECONDS`; the first are not counted."""
        few = min(_FEW_ENCODED, most)
        work(few)
        seconds = self._seconds(lambda: work(few))
        many = min(most, max(few, round(few * _PART_SECONDS / seconds)))
        return many / self._seconds(lambda: work(many))

    def _search(self, folder: Path, device: torch.device) -> tuple[float, float]:
        """(seconds of any search, rows a second), among random vectors on disk."""
        queries = random_vectors(self.num_queries, self.encoder.dimension, -1).to(device)
        beyond_caches = _MANY_COORDINATES // self.encoder.dimension
        seconds, many = [], max(_MANY_ROWS, min(beyond_caches, self.num_passages))
        for num_rows in (_FEW_ROWS, many):
            identity = StoreIdentity("random", "random", num_rows, self.embedding_dtype)
            index = FlatIndex(
                write_random(folder / f"random-{num_rows}", identity, self.encoder.dimension), device=device
            )

            def search(index: FlatIndex = index) -> None:
                index.search(queries, self.topk).rows.cpu()  # waits for the device

            search()
            seconds.append(statistics.median(self._seconds(search) for _ in range(_SEARCHES)))
        rate, start = _line(_FEW_ROWS, seconds[0], many, seconds[1])
        return start, rate


def random_vectors(num_rows: int, dimension: int, seed: int) -> Tensor:
    """[num_rows, D] of length 1, in all directions: a trained encoder's are searched in the same time."""
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(num_rows, dimension, generator=random), dim=1)


def write_random(folder: Path, identity: StoreIdentity, dimension: int) -> EmbeddingStore:
    """A store of `random_vectors`."""
    writer = EmbeddingWriter(folder, identity)
    for shard in writer.unfinished_shards():
        writer.write(shard, random_vectors(len(writer.rows(shard)), dimension, shard))
    return writer.finish()


def _line(few: int, few_seconds: float, many: int, many_seconds: float) -> tuple[float, float]:
    """(a second, seconds at the start) of work whose time is linear in its size."""
    if many == few or many_seconds <= few_seconds:  # noise
        return many / many_seconds, 0.0
    rate = (many - few) / (many_seconds - few_seconds)
    start = few_seconds - few / rate
    return (rate, start) if start > 0 else (many / many_seconds, 0.0)


def seconds_of(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """What `work` takes by this clock."""
    started = clock()
    work()
    return clock() - started


def _write(path: Path) -> None:
    block = bytes(1 << 22)
    with atomic_file(path, "wb") as file:
        for _ in range(_WRITTEN_BYTES // len(block)):
            file.write(block)
