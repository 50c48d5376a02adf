"""Building an evidence against tokenizing its text alone: speed, and peak memory at two sizes.

The raw tokenizer gets the passages in memory, as lists, and throws the ids away; the builder reads them from a file,
tokenizes, hashes, writes, and sorts the ids. Both have the same number of workers: the tokenizer's own threads, the
builder's processes. Every run has a process of its own, the two take turns, and a ratio is that of neighbours. The
seconds of one worker are those that its process spends, of several those that pass. Memory is what a process and its
children hold.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil  # type: ignore[import-untyped]

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

MIB = 2**20
_BATCH_TEXTS = 2048


@dataclass(kw_only=True, frozen=True)
class EvidenceBenchmarkConfig(Checked):
    """Compare the evidence builder with the raw tokenizer."""

    input: tuple[str, ...]
    """Passage files; their passages are repeated, with ids of their own, up to the numbers wanted."""
    vocab_file: str
    """WordPiece vocabulary (vocab.txt)."""
    num_passages: tuple[PositiveInt, ...] = (50_000, 500_000)
    """Sizes of the evidence."""
    workers: PositiveInt = 1
    """Threads of the tokenizer, processes of the builder."""
    num_rounds: PositiveInt = 3
    """Runs of each that are timed, at each size."""


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    seconds: float
    peak_bytes: int


def main(config: EvidenceBenchmarkConfig) -> None:
    rows = []
    for num_passages in config.num_passages:
        with TemporaryDirectory() as folder:
            source = Path(folder) / "passages.tsv"
            _write_passages(source, config.input, num_passages)
            costs: dict[str, list[Cost]] = {"tokenizer": [], "builder": []}
            for number in range(config.num_rounds):
                costs["tokenizer"].append(_alone(_tokenize, source, config))
                costs["builder"].append(_alone(_build, source, config, Path(folder) / f"evidence-{number}"))
        rows += [_row(num_passages, name, costs) for name in costs]
    header = ["passages, by", "passages / s, median", "speed", "rounds", "peak MiB"]
    sys.stdout.write(f"{text_table(header, rows)}\n")


def _write_passages(path: Path, inputs: tuple[str, ...], num_passages: int) -> None:
    passages = [passage for source in inputs for _, passage in read_passages(source)]
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(("id", "text", "title"))
        for number, passage in enumerate(islice(cycle(passages), num_passages), 1):
            table.writerow((number, passage.text, passage.title))


def _alone(function: Callable[..., Cost], *arguments: object) -> Cost:
    """Call it in a new process, which may have children of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _tokenize(source: Path, config: EvidenceBenchmarkConfig) -> Cost:
    os.environ["RAYON_NUM_THREADS"] = str(config.workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = WordPieceTokenizer(config.vocab_file)
    passages = [passage for _, passage in read_passages(source)]
    batches = [
        [text for passage in passages[start : start + _BATCH_TEXTS] for text in (passage.title, passage.text)]
        for start in range(0, len(passages), _BATCH_TEXTS)
    ]

    def work() -> None:
        for batch in batches:
            tokenizer.encode(batch)

    return _measure(work, config.workers)


def _build(source: Path, config: EvidenceBenchmarkConfig, output: Path) -> Cost:
    settings = EvidenceBuilderConfig(
        input=(str(source),), output=str(output), vocab_file=config.vocab_file, workers=config.workers
    )
    return _measure(lambda: build_evidence(settings), config.workers)


def _measure(work: Callable[[], object], workers: int) -> Cost:
    clock = time.process_time if workers == 1 else time.perf_counter
    ended, peaks = threading.Event(), [0]
    watcher = threading.Thread(target=_watch_memory, args=(ended, peaks))
    watcher.start()
    started = clock()
    work()
    seconds = clock() - started
    ended.set()
    watcher.join()
    return Cost(seconds, max(peaks))


def _watch_memory(ended: threading.Event, peaks: list[int]) -> None:
    while not ended.wait(0.05):
        peaks.append(sum(_resident_bytes()))


def _resident_bytes() -> Iterator[int]:
    this = psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        try:
            yield process.memory_info().rss
        except psutil.NoSuchProcess:
            continue


def _row(num_passages: int, name: str, costs: dict[str, list[Cost]]) -> list[str]:
    """Speeds are shares of the tokenizer's: above 1 is faster."""
    pairs = zip(costs[name], costs["tokenizer"], strict=True)
    ratios = [raw.seconds / own.seconds for own, raw in pairs]
    return [
        f"{num_passages:,}, {name}",
        f"{num_passages / statistics.median(cost.seconds for cost in costs[name]):,.0f}",
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{max(cost.peak_bytes for cost in costs[name]) / MIB:.0f}",
    ]


if __name__ == "__main__":
    run_program(EvidenceBenchmarkConfig, main)
