"""The index follows the encoder: every rank changes to the same version after the same step, or none does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_retrieval.applications.plan.config import HardwareConfig, PlanConfig
from megatron_retrieval.applications.plan.fit import disk_bytes
from megatron_retrieval.applications.plan.plan import make_plan
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.store import model_writer
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import DataError, MegatronRetrievalError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore, StoreIdentity
from megatron_retrieval.index.store.embedding_writer import EmbeddingWriter
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh.index_encoder import IndexEncoder
from megatron_retrieval.retrieval.embedder import embed_evidence
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions
from megatron_retrieval.testing.refreshed_run import NUM_COMPARED, TEXT_FORMAT, RefreshedRunConfig, build
from megatron_retrieval.testing.runs import curve
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_evidence
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer

DIMENSION = 32


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_evidence(tmp_path_factory.mktemp("evidence"))


def _words(evidence: Path, output: Path, *flags: object) -> list[str]:
    words = "--device cpu --global-batch-size 4 --no-tensorboard --log-interval 1 --lr 1e-2 --train-iters 6".split()
    return [*words, "--evidence", str(evidence), "--output-dir", str(output), *map(str, flags)]


class _Watch(Callback):
    """Which version each step searched: as it is before the refresher has a look."""

    def __init__(self) -> None:
        self.versions: list[int] = []

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self.versions.append(int(self.refresher.metrics()["index_version"]))  # type: ignore[attr-defined]


class _Worker(Callback):
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


class _Clock:
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


def _run(
    topology: ProcessTopology, words: list[str], deeds: list[tuple[int, str]] | None = None, **settings: Any
) -> list[Any]:
    """The versions that the steps searched, the state at the end, and how often the step was given another index; or
    what went wrong."""
    config = parse_config(RefreshedRunConfig, words)
    watch = _Watch()
    more: list[Callback] = [watch]
    folder = config.refresh.folder(config.training.log.output_dir)
    if deeds is not None:
        more.append(_Worker(folder, config.evidence, deeds))
    clock = _Clock(1000.0 * config.training.train_iters)  # that of another process
    settings = {"clock": clock, **settings}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("snapshot", "embed"):
            patch.setattr(IndexEncoder, name, clock.slowed(getattr(IndexEncoder, name)))
        return _fit(config, topology, watch, more, has_embedding_ranks=deeds is not None, **settings)


def _fit(
    config: RefreshedRunConfig, topology: ProcessTopology, watch: _Watch, more: list[Callback], **settings: Any
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


def _lines(output: Path) -> list[dict[str, float]]:
    """What was logged of the index."""
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if "index_version" in record]


@pytest.mark.parametrize(("num_ranks", "tensor_parallel"), [(1, 1), (2, 1), (2, 2)], ids=["single", "DP 2", "TP 2"])
def test_in_place_all_ranks_change_at_once(
    tmp_path: Path, evidence: Path, num_ranks: int, tensor_parallel: int
) -> None:
    words = _words(evidence, tmp_path, "--index-refresh-interval", 2)
    ranks = run_on_ranks(_run, num_ranks, words, tensor_model_parallel_size=tensor_parallel)
    for versions, state, num_changes in ranks:
        assert versions == [0, 0, 2, 2, 4, 4]
        assert (state["current"]["iteration"], state["pending"], num_changes) == (6, None, 3)
    lines = _lines(tmp_path)
    assert [(line["iteration"], line["index_version"], line["index_staleness_steps"]) for line in lines] == [
        (2, 2, 0), (4, 4, 0), (6, 6, 0)
    ]  # fmt: skip
    # as old as the encoder's weights: half a minute to write them, and half a minute to embed the evidence
    assert curve(tmp_path, "index_staleness_minutes") == [1.0] * 9
    overlaps = [line[f"index_overlap@{NUM_COMPARED}"] for line in lines]
    assert 0 < min(overlaps) <= max(overlaps) < 1
    assert IndexVersions(tmp_path / "index").complete() == [4, 6]


def _embed(topology: ProcessTopology, evidence: str, checkpoint: str, output: str) -> None:
    encoder = DUAL_ENCODER.load(checkpoint, topology)
    job = EmbeddingJob(
        evidence=EvidenceStore(evidence),
        encode=encoder.model.encode_passages,
        text_format=encoder.description.layout,
        encoder_fingerprint=encoder.description.fingerprint,
    )
    embed_evidence(job, output, topology)


def test_a_version_is_what_its_snapshot_embeds(tmp_path: Path, evidence: Path) -> None:
    """Although the model was in training mode, with dropout."""
    run_on_ranks(_run, 1, _words(evidence, tmp_path, "--index-refresh-interval", 3))
    versions = IndexVersions(tmp_path / "index")
    assert DUAL_ENCODER.describe(versions.snapshot(6)).layout == TEXT_FORMAT
    run_on_ranks(_embed, 1, str(evidence), str(versions.snapshot(6)), str(tmp_path / "again"))
    stores = [EmbeddingStore(folder) for folder in (versions.path(3), versions.path(6), tmp_path / "again")]
    before, last, again = (store.vectors(0, len(store)) for store in stores)
    assert torch.equal(last, again)
    assert stores[1].manifest.identity == stores[2].manifest.identity
    assert not torch.equal(before, last)


def test_training_does_not_notice(tmp_path: Path, evidence: Path) -> None:
    """The step does not learn from what it finds, so that its losses, with dropout, stay the same bit for bit."""
    run_on_ranks(_run, 1, _words(evidence, tmp_path / "never"))
    run_on_ranks(_run, 1, _words(evidence, tmp_path / "often", "--index-refresh-interval", 1))
    assert curve(tmp_path / "never") == curve(tmp_path / "often")
    assert _lines(tmp_path / "never") == []


#: what is done, the versions that the steps search, and the one that is being made at the end
DEEDS: dict[str, tuple[list[tuple[int, str]], list[int], int | None]] = {
    "a version that comes later": ([(4, "make")], [0, 0, 0, 0, 2, 2], 4),
    "truncated": ([(3, "truncate"), (5, "make")], [0, 0, 0, 0, 0, 2], None),
    "of another encoder": ([(3, "foreign"), (5, "make")], [0, 0, 0, 0, 0, 2], None),
    "given up": ([(3, "give up"), (5, "make")], [0, 0, 0, 0, 0, 4], None),
    "request and encoder removed": ([(3, "remove"), (5, "make")], [0, 0, 0, 0, 0, 3], None),
    "useless again and again": ([(2 + n, "truncate") for n in (1, 2, 3)], [0, 0, 0, 0, 0, 0], None),
}


def _run_cases(topology: ProcessTopology, words: dict[str, list[str]]) -> dict[str, list[Any]]:
    return {case: _run(topology, words[case], deeds) for case, (deeds, _, _) in DEEDS.items()}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_all_ranks_change_to_what_others_made_after_the_same_step(
    tmp_path: Path, evidence: Path, num_ranks: int
) -> None:
    words = {case: _words(evidence, tmp_path / case, "--index-refresh-interval", 2) for case in DEEDS}
    for rank in run_on_ranks(_run_cases, num_ranks, words):
        for case, (_, expected, pending) in DEEDS.items():
            versions, state, _ = rank[case]
            assert versions == expected, case
            assert state["current"]["iteration"] == expected[-1], case
            assert (state["pending"] and state["pending"]["iteration"]) == pending, case
    for case, (_, expected, pending) in DEEDS.items():
        request = IndexVersions(tmp_path / case / "index").requested()
        assert (request and request.iteration) == pending, case
        lines = _lines(tmp_path / case)
        assert [line["index_version"] for line in lines] == sorted(set(expected) - {0}), case
        for line in lines:
            assert line["index_staleness_steps"] == line["iteration"] - line["index_version"]


def _saving(folder: Path, *flags: object) -> list[object]:
    return ["--save", folder, "--load", folder, "--save-interval", 1, "--index-refresh-interval", 3, *flags]


@pytest.mark.parametrize("tensor_parallel", [1, 2], ids=["DP 2", "TP 2"])
def test_a_resumed_run_opens_the_version_that_it_had(tmp_path: Path, evidence: Path, tensor_parallel: int) -> None:
    saved = _saving(tmp_path / "saved", "--index-dir", tmp_path / "index")
    run_on_ranks(_run, 1, _words(evidence, tmp_path / "first", *saved, "--train-iters", 5))
    manifest = (tmp_path / "index" / "version-0000003" / "manifest.json").stat()
    words = _words(evidence, tmp_path / "second", *saved, "--train-iters", 8)
    ranks = run_on_ranks(_run, 2, words, tensor_model_parallel_size=tensor_parallel)
    assert [rank[0] for rank in ranks] == [[3, 6, 6]] * 2
    assert (tmp_path / "index" / "version-0000003" / "manifest.json").stat().st_mtime_ns == manifest.st_mtime_ns
    assert [record["iteration"] for record in _lines(tmp_path / "second")] == [6]
    assert curve(tmp_path / "second", "index_staleness_minutes") == [1.0] * 4, "as if no time had passed"


def test_a_pending_request_is_taken_up_again(tmp_path: Path, evidence: Path) -> None:
    saved = _saving(tmp_path / "saved", "--index-dir", tmp_path / "index")
    first = run_on_ranks(_run, 1, _words(evidence, tmp_path / "first", *saved, "--train-iters", 5), [])
    assert (first[0][0], first[0][1]["pending"]["iteration"]) == ([0] * 5, 3)
    (tmp_path / "index" / "request.json").unlink()
    second = run_on_ranks(_run, 2, _words(evidence, tmp_path / "second", *saved, "--train-iters", 8), [(7, "make")])
    assert [rank[0] for rank in second] == [[0, 0, 3]] * 2
    (line,) = _lines(tmp_path / "second")
    assert (line["iteration"], line["index_version"], line["index_staleness_steps"]) == (7, 3, 4)


@pytest.mark.parametrize(("bound", "kept"), [(2, [5, 6]), (4, [3, 4, 5, 6])])
def test_old_versions_go_and_the_encoders_that_checkpoints_name_stay(
    tmp_path: Path, evidence: Path, bound: int, kept: list[int]
) -> None:
    saved = _saving(tmp_path / "saved", "--keep-last", 4)
    flags = ("--index-refresh-interval", 1, "--keep-index-versions", bound)
    run_on_ranks(_run, 1, _words(evidence, tmp_path, *saved, *flags))
    states = [
        read_manifest(path.parent).training["states"]["index"] for path in (tmp_path / "saved").glob("*/manifest.json")
    ]
    assert {state["current"]["iteration"] for state in states} == {3, 4, 5, 6}
    versions = IndexVersions(tmp_path / "index")
    assert versions.complete() == kept
    # at the last change of the index, before the last checkpoint, four others were named
    assert sorted(path.name for path in versions.snapshots.glob("iter_*")) == [f"iter_000000{n}" for n in range(2, 7)]


def _peak_bytes(topology: ProcessTopology, words: list[str], folder: str) -> int:
    """The most that the data files of a run take at once: measured before each folder is removed."""
    peak, removed = 0, shutil.rmtree

    def remove(path: str | Path, ignore_errors: bool = False) -> None:
        nonlocal peak
        files = [path for path in Path(folder).rglob("*") if path.suffix in (".safetensors", ".bin", ".part")]
        peak = max(peak, sum(path.stat().st_size for path in files))
        removed(path, ignore_errors=ignore_errors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove)
        _run(topology, words)
    return peak


def test_the_disk_of_25_refreshes_is_planned(tmp_path: Path, evidence: Path) -> None:
    """Of data files, beside which the small ones of so tiny a model count; all of a plan but the reader's share."""
    flags = ("--save", tmp_path / "saved", "--save-interval", 4, "--keep-last", 2, "--index-refresh-interval", 1)
    words = _words(evidence, tmp_path, *flags, "--train-iters", 25)
    (peak,) = run_on_ranks(_peak_bytes, 1, words, str(tmp_path))
    num_passages = len(EvidenceStore(evidence))
    settings = PlanConfig(passages=num_passages, encoder=tiny_dual_encoder_config(), hardware=HardwareConfig(gpus=0))
    settings = replace(settings, training=replace(settings.training, keep_last=2))
    found = make_plan(settings).estimate
    found = replace(found, evidence_bytes=0, checkpoint_bytes=3 * found.encoder_bytes)
    planned = disk_bytes(settings, found)
    assert 0.6 * planned < peak < planned, f"{peak:,} of {planned:,} planned bytes"


def _write_late(topology: ProcessTopology, words: list[str], snapshot: str) -> None:
    """What a thread writes is held up until an encoder has been saved."""
    write = model_writer.write_shard_file

    def wait_and_write(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
        while threading.current_thread() is not threading.main_thread() and not Path(snapshot).exists():
            time.sleep(0.01)
        return write(path, tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_writer, "write_shard_file", wait_and_write)
        _run(topology, words)


def test_the_encoder_of_a_checkpoint_that_is_being_written_stays(tmp_path: Path, evidence: Path) -> None:
    flags = ("--save", tmp_path / "saved", "--save-interval", 3, "--async-save", "--index-refresh-interval", 1)
    versions = IndexVersions(tmp_path / "index")
    words = _words(evidence, tmp_path, *flags, "--train-iters", 5)
    run_on_ranks(_write_late, 1, words, str(versions.snapshot(5)))
    assert read_manifest(tmp_path / "saved" / "iter_0000003").training["states"]["index"]["current"]["iteration"] == 3
    assert versions.complete() == [4, 5]
    assert sorted(path.name for path in versions.snapshots.glob("iter_*")) == [f"iter_000000{n}" for n in (3, 4, 5)]


@pytest.mark.parametrize(("num_ranks", "damage"), [(1, "gone"), (2, "cut off"), (1, "flipped"), (2, "flipped")])
def test_a_version_that_cannot_be_opened_is_made_again_by_its_encoder(
    tmp_path: Path, evidence: Path, num_ranks: int, damage: str
) -> None:
    words = _words(evidence, tmp_path, *_saving(tmp_path / "saved"))
    run_on_ranks(_run, 1, words)
    versions = IndexVersions(tmp_path / "index")
    store = EmbeddingStore(versions.path(6))
    expected = store.vectors(0, len(store)).clone()
    if damage == "gone":
        versions.remove(6)
    elif damage == "flipped":
        last = max(versions.path(6).glob("shard-*.bin"))
        content = bytearray(last.read_bytes())
        content[-1] ^= 1
        last.write_bytes(content)
    else:
        (versions.path(6) / "shard-00000.bin").write_bytes(b"cut off")
    assert run_on_ranks(_run, num_ranks, [*words, "--train-iters", "8"])[0][0] == [6, 6]
    store = EmbeddingStore(versions.path(6))
    assert torch.equal(store.vectors(0, len(store)), expected)


def test_a_version_that_is_gone_with_its_encoder_is_said(tmp_path: Path, evidence: Path) -> None:
    words = _words(evidence, tmp_path, *_saving(tmp_path / "saved"))
    run_on_ranks(_run, 1, words)
    versions = IndexVersions(tmp_path / "index")
    versions.remove(6)
    shutil.rmtree(versions.snapshot(6))
    shutil.copytree(versions.snapshot(3), versions.snapshot(6))
    ((kind, message),) = run_on_ranks(_run, 1, [*words, "--train-iters", "8"])
    assert kind == "MismatchError"
    assert "but the checkpoint was saved with the index of" in message
    versions.prune([])
    ((kind, message),) = run_on_ranks(_run, 1, [*words, "--train-iters", "8"])
    assert kind == "CheckpointError"
    assert "index version 6, which cannot be opened" in message
    assert "Its encoder is gone as well. Resume another checkpoint" in message


@pytest.mark.parametrize("flags", [(), ("--index-refresh-interval", 2)], ids=["never", "in place"])
def test_a_pending_version_is_dropped_where_nobody_embeds(tmp_path: Path, evidence: Path, flags: tuple[object]) -> None:
    """Resumed in place or without refreshing, what another run asked for would be waited for without end."""
    saved = ["--save", tmp_path / "saved", "--load", tmp_path / "saved", "--index-dir", tmp_path / "index"]
    first = _words(evidence, tmp_path / "first", *saved, "--index-refresh-interval", 3, "--train-iters", 5)
    assert run_on_ranks(_run, 1, first, [])[0][1]["pending"]["iteration"] == 3
    second = _words(evidence, tmp_path / "second", *saved, *flags, "--train-iters", 9)
    ((versions, state, _),) = run_on_ranks(_run, 1, second)
    assert state["pending"] is None
    assert versions == ([0, 6, 6, 8] if flags else [0, 0, 0, 0])


def test_two_runs_do_not_share_a_folder(tmp_path: Path, evidence: Path) -> None:
    words = _words(evidence, tmp_path, "--index-refresh-interval", 3)
    with IndexVersions(tmp_path / "index").lock():
        for kind, message in run_on_ranks(_run, 2, words):
            assert kind == "ConfigError"
            assert f"another run (process {os.getpid()} on" in message
            assert "--index-dir of its own" in message
    assert run_on_ranks(_run, 1, words)[0][0] == [0, 0, 0, 3, 3, 3]


def _blind(topology: ProcessTopology, words: list[str], num_blind: int, minutes_per_look: float) -> list[Any]:
    """Rank 1 does not see finished versions the first times that it looks; time passes in between."""
    clock = iter(range(10**6))
    looks = iter(range(10**6))
    real = IndexVersions.open_for

    def open_for(versions: IndexVersions, request: IndexRequest, evidence: str) -> EmbeddingStore:
        if topology.rank == 1 and request.iteration > 0 and next(looks) < num_blind:
            raise DataError(versions.path(request.iteration), "does not exist")
        return real(versions, request, evidence)

    IndexVersions.open_for = open_for  # type: ignore[method-assign]
    try:
        return _run(topology, words, [(3, "make")], clock=lambda: 60.0 * minutes_per_look * next(clock))
    finally:
        IndexVersions.open_for = real  # type: ignore[method-assign]


def test_what_one_rank_does_not_see_yet_is_kept(tmp_path: Path, evidence: Path) -> None:
    """As with a network file system, whose cache another node has not looked through yet."""
    words = _words(evidence, tmp_path, "--index-refresh-interval", 2, "--keep-index-versions", 4)
    for versions, state, _ in run_on_ranks(_blind, 2, words, 2, 0.01):
        assert versions == [0, 0, 0, 0, 0, 2], "after steps 3 and 4 it is not seen, after step 5 it is"
        assert state["current"]["iteration"] == 2
    (line,) = _lines(tmp_path)
    assert (line["iteration"], line["index_version"]) == (5, 2)


def test_what_one_rank_never_sees_is_left_alone_and_on_disk(tmp_path: Path, evidence: Path) -> None:
    words = _words(evidence, tmp_path, "--index-refresh-interval", 2)
    for versions, state, _ in run_on_ranks(_blind, 2, words, 99, 6.0):
        assert versions == [0, 0, 0, 0, 0, 0]
        assert state["current"]["iteration"] == 0
        assert (state["pending"] or {}).get("iteration") != 2, "it is not waited for any more"
    assert IndexVersions(tmp_path / "index").complete() == [0, 2]


def _stopped(topology: ProcessTopology, words: list[str], at: int) -> list[Any]:
    """A stop signal reaches one rank while a version is embedded."""
    real = IndexEncoder.embed

    def embed(encoder: IndexEncoder, versions: IndexVersions, iteration: int, fingerprint: str) -> EmbeddingStore:
        if iteration == at and topology.rank == topology.world_size - 1:
            signal.raise_signal(signal.SIGTERM)
        return real(encoder, versions, iteration, fingerprint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IndexEncoder, "embed", embed)
        config = parse_config(RefreshedRunConfig, words)
        run = build(config, topology)
        return [run.trainer.fit(), run.trainer.iteration]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_stop_signal_ends_the_first_embedding(tmp_path: Path, evidence: Path, num_ranks: int) -> None:
    saved = _saving(tmp_path / "saved")
    words = _words(evidence, tmp_path, *saved)
    assert run_on_ranks(_stopped, num_ranks, words, 0) == [[False, 0]] * num_ranks
    versions = IndexVersions(tmp_path / "index")
    assert versions.complete() == []
    assert list(versions.path(0).glob("shard-*.bin")), "what is embedded is kept"
    assert not (tmp_path / "saved").exists()
    assert run_on_ranks(_run, num_ranks, words)[0][0] == [0, 0, 0, 3, 3, 3]


def test_a_refresh_in_place_is_finished_before_a_stop(tmp_path: Path, evidence: Path) -> None:
    """A resumed run would not make it again, and would differ from one that was not stopped."""
    words = _words(evidence, tmp_path, *_saving(tmp_path / "saved"))
    assert run_on_ranks(_stopped, 2, words, 3) == [[False, 3]] * 2
    assert IndexVersions(tmp_path / "index").complete() == [0, 3]
    assert run_on_ranks(_run, 1, words)[0][0] == [3, 3, 3]


def _on_a_full_disk(topology: ProcessTopology, words: list[str]) -> list[Any]:
    usage = shutil.disk_usage("/")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        return _run(topology, words)


def test_no_version_is_begun_that_the_disk_cannot_hold(tmp_path: Path, evidence: Path) -> None:
    words = _words(evidence, tmp_path, "--index-refresh-interval", 2)
    for versions, state, _ in run_on_ranks(_on_a_full_disk, 2, words):
        assert versions == [0] * 6
        assert state["pending"] is None


def test_a_new_run_keeps_no_version_of_an_earlier_one(tmp_path: Path, evidence: Path) -> None:
    words = _words(evidence, tmp_path, "--index-refresh-interval", 3)
    run_on_ranks(_run, 1, words)
    versions = IndexVersions(tmp_path / "index")
    versions.path(5).mkdir()
    versions.request(IndexRequest(5, "encoder"))
    run_on_ranks(_run, 1, [*words, "--seed", "5", "--train-iters", "2"])
    assert [path.name for path in (tmp_path / "index").glob("version-*")] == ["version-0000000"]
    assert versions.requested() is None
