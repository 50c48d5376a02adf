"""Runs with a refreshed index, and what stands in their tests for a worker, a watch and a clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import MegatronRetrievalError
from megatron_retrieval.index.store.embedding_store import StoreIdentity
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh.index_encoder import IndexEncoder
from megatron_retrieval.retrieval.index_versions import IndexVersions
from megatron_retrieval.testing.refreshed_run import RefreshedRunConfig, build
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer

DIMENSION = 32


def words_of_run(evidence: Path, output: Path, *flags: object) -> list[str]:
    words = "--device cpu --global-batch-size 4 --no-tensorboard --log-interval 1 --lr 1e-2 --train-iters 6".split()
    return [*words, "--evidence", str(evidence), "--output-dir", str(output), *map(str, flags)]


class Watch(Callback):
    """Which version each step searched: as it is before the refresher has a look."""

    def __init__(self) -> None:
        self.versions: list[int] = []

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self.versions.append(int(self.refresher.metrics()["index_version"]))  # type: ignore[attr-defined]


class Worker(Callback):
    """Does on rank 0, between two steps, what a worker would do meanwhile.

    Args:
        deeds: (iteration after which something is done, what).
    """

    def __init__(self, index: Path, evidence: Path, deeds: Sequence[tuple[int, str]]) -> None:
        self._versions, self._evidence, self._deeds = IndexVersions(index), EvidenceStore(evidence), dict(deeds)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        deed, request = self._deeds.get(report.iteration), self._versions.requested()
        trainer.topology.barrier()
        if not trainer.topology.is_main or deed is None:
            return
        assert request is not None
        if deed == "give up":
            self._versions.give_up(request)
            return
        if deed == "remove":
            self._versions.withdraw()
            self._versions.prune([0])
            return
        path, num_rows = self._versions.path(request.iteration), len(self._evidence)
        identity = StoreIdentity(
            self._evidence.fingerprint, request.encoder_fingerprint, num_rows, "float16", "float32"
        )
        writer = EmbeddingWriter(path, identity)
        for shard in writer.unfinished_shards():
            writer.write(shard, torch.rand(len(writer.rows(shard)), DIMENSION))
        writer.finish()
        if deed == "truncate":
            shard_file = path / "shard-00001.bin"
            shard_file.write_bytes(shard_file.read_bytes()[:-2])
        elif deed == "foreign":
            manifest = path / "manifest.json"
            manifest.write_text(manifest.read_text().replace(request.encoder_fingerprint, "0123456789abcdef"))


class Clock:
    """Seconds that pass only while something slow is done: half a minute each time."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def slowed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any) -> Any:
            self.now += 30
            return work(*args)

        return slow


def run_refreshed(
    topology: ProcessTopology, words: list[str], deeds: list[tuple[int, str]] | None = None, **settings: Any
) -> list[Any]:
    """The versions that the steps searched, the state at the end, and how often the step was given another index; or
    what went wrong."""
    config = parse_config(RefreshedRunConfig, words)
    watch = Watch()
    more: list[Callback] = [watch]
    folder = config.refresh.folder(config.training.log.output_dir)
    if deeds is not None:
        more.append(Worker(folder, config.evidence, deeds))
    clock = Clock(1000.0 * config.training.train_iters)  # that of another process
    settings = {"clock": clock, **settings}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("snapshot", "embed"):
            patch.setattr(IndexEncoder, name, clock.slowed(getattr(IndexEncoder, name)))
        return fit(config, topology, watch, more, has_embedding_ranks=deeds is not None, **settings)


def fit(
    config: RefreshedRunConfig, topology: ProcessTopology, watch: Watch, more: list[Callback], **settings: Any
) -> list[Any]:
    try:
        run = build(config, topology, more=more, **settings)
        watch.refresher = run.refresher  # type: ignore[attr-defined]
        run.trainer.fit()
    except MegatronRetrievalError as error:
        return [type(error).__name__, str(error)]
    assert run.step.index is not None
    assert run.step.index.num_rows == len(EvidenceStore(config.evidence))
    return [watch.versions, run.refresher.state(), run.step.num_changes]


def index_lines(output: Path) -> list[dict[str, float]]:
    """What was logged of the index."""
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if "index_version" in record]


def saving_words(folder: Path, *flags: object) -> list[object]:
    return ["--save", folder, "--load", folder, "--save-interval", 1, "--index-refresh-interval", 3, *flags]
