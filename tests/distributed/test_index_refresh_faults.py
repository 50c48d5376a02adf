"""What is kept and what is made again when versions age, vanish, are damaged or come late, and when runs stop."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from refreshed_runs import index_lines, run_refreshed, saving_words, words_of_run

from megatron_retrieval.applications.plan.config import HardwareConfig, PlanConfig
from megatron_retrieval.applications.plan.fit import disk_bytes
from megatron_retrieval.applications.plan.plan import make_plan
from megatron_retrieval.checkpoint.store import model_writer
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import DataError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh.index_encoder import IndexEncoder
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions
from megatron_retrieval.testing.refreshed_run import RefreshedRunConfig, build
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_evidence


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_evidence(tmp_path_factory.mktemp("evidence"))


@pytest.mark.parametrize(("bound", "kept"), [(2, [5, 6]), (4, [3, 4, 5, 6])])
def test_old_versions_go_and_the_encoders_that_checkpoints_name_stay(
    tmp_path: Path, evidence: Path, bound: int, kept: list[int]
) -> None:
    saved = saving_words(tmp_path / "saved", "--keep-last", 4)
    flags = ("--index-refresh-interval", 1, "--keep-index-versions", bound)
    run_on_ranks(run_refreshed, 1, words_of_run(evidence, tmp_path, *saved, *flags))
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
        run_refreshed(topology, words)
    return peak


def test_the_disk_of_25_refreshes_is_planned(tmp_path: Path, evidence: Path) -> None:
    """Of data files, beside which the small ones of so tiny a model count; all of a plan but the reader's share."""
    flags = ("--save", tmp_path / "saved", "--save-interval", 4, "--keep-last", 2, "--index-refresh-interval", 1)
    words = words_of_run(evidence, tmp_path, *flags, "--train-iters", 25)
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
        run_refreshed(topology, words)


def test_the_encoder_of_a_checkpoint_that_is_being_written_stays(tmp_path: Path, evidence: Path) -> None:
    flags = ("--save", tmp_path / "saved", "--save-interval", 3, "--async-save", "--index-refresh-interval", 1)
    versions = IndexVersions(tmp_path / "index")
    words = words_of_run(evidence, tmp_path, *flags, "--train-iters", 5)
    run_on_ranks(_write_late, 1, words, str(versions.snapshot(5)))
    assert read_manifest(tmp_path / "saved" / "iter_0000003").training["states"]["index"]["current"]["iteration"] == 3
    assert versions.complete() == [4, 5]
    assert sorted(path.name for path in versions.snapshots.glob("iter_*")) == [f"iter_000000{n}" for n in (3, 4, 5)]


@pytest.mark.parametrize(("num_ranks", "damage"), [(1, "gone"), (2, "cut off"), (1, "flipped"), (2, "flipped")])
def test_a_version_that_cannot_be_opened_is_made_again_by_its_encoder(
    tmp_path: Path, evidence: Path, num_ranks: int, damage: str
) -> None:
    words = words_of_run(evidence, tmp_path, *saving_words(tmp_path / "saved"))
    run_on_ranks(run_refreshed, 1, words)
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
    assert run_on_ranks(run_refreshed, num_ranks, [*words, "--train-iters", "8"])[0][0] == [6, 6]
    store = EmbeddingStore(versions.path(6))
    assert torch.equal(store.vectors(0, len(store)), expected)


def test_a_version_that_is_gone_with_its_encoder_is_said(tmp_path: Path, evidence: Path) -> None:
    words = words_of_run(evidence, tmp_path, *saving_words(tmp_path / "saved"))
    run_on_ranks(run_refreshed, 1, words)
    versions = IndexVersions(tmp_path / "index")
    versions.remove(6)
    shutil.rmtree(versions.snapshot(6))
    shutil.copytree(versions.snapshot(3), versions.snapshot(6))
    ((kind, message),) = run_on_ranks(run_refreshed, 1, [*words, "--train-iters", "8"])
    assert kind == "MismatchError"
    assert "but the checkpoint was saved with the index of" in message
    versions.prune([])
    ((kind, message),) = run_on_ranks(run_refreshed, 1, [*words, "--train-iters", "8"])
    assert kind == "CheckpointError"
    assert "index version 6, which cannot be opened" in message
    assert "Its encoder is gone as well. Resume another checkpoint" in message


@pytest.mark.parametrize("flags", [(), ("--index-refresh-interval", 2)], ids=["never", "in place"])
def test_a_pending_version_is_dropped_where_nobody_embeds(tmp_path: Path, evidence: Path, flags: tuple[object]) -> None:
    """Resumed in place or without refreshing, what another run asked for would be waited for without end."""
    saved = ["--save", tmp_path / "saved", "--load", tmp_path / "saved", "--index-dir", tmp_path / "index"]
    first = words_of_run(evidence, tmp_path / "first", *saved, "--index-refresh-interval", 3, "--train-iters", 5)
    assert run_on_ranks(run_refreshed, 1, first, [])[0][1]["pending"]["iteration"] == 3
    second = words_of_run(evidence, tmp_path / "second", *saved, *flags, "--train-iters", 9)
    ((versions, state, _),) = run_on_ranks(run_refreshed, 1, second)
    assert state["pending"] is None
    assert versions == ([0, 6, 6, 8] if flags else [0, 0, 0, 0])


def test_two_runs_do_not_share_a_folder(tmp_path: Path, evidence: Path) -> None:
    words = words_of_run(evidence, tmp_path, "--index-refresh-interval", 3)
    with IndexVersions(tmp_path / "index").lock():
        for kind, message in run_on_ranks(run_refreshed, 2, words):
            assert kind == "ConfigError"
            assert f"another run (process {os.getpid()} on" in message
            assert "--index-dir of its own" in message
    assert run_on_ranks(run_refreshed, 1, words)[0][0] == [0, 0, 0, 3, 3, 3]


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
        return run_refreshed(topology, words, [(3, "make")], clock=lambda: 60.0 * minutes_per_look * next(clock))
    finally:
        IndexVersions.open_for = real  # type: ignore[method-assign]


def test_what_one_rank_does_not_see_yet_is_kept(tmp_path: Path, evidence: Path) -> None:
    """As with a network file system, whose cache another node has not looked through yet."""
    words = words_of_run(evidence, tmp_path, "--index-refresh-interval", 2, "--keep-index-versions", 4)
    for versions, state, _ in run_on_ranks(_blind, 2, words, 2, 0.01):
        assert versions == [0, 0, 0, 0, 0, 2], "after steps 3 and 4 it is not seen, after step 5 it is"
        assert state["current"]["iteration"] == 2
    (line,) = index_lines(tmp_path)
    assert (line["iteration"], line["index_version"]) == (5, 2)


def test_what_one_rank_never_sees_is_left_alone_and_on_disk(tmp_path: Path, evidence: Path) -> None:
    words = words_of_run(evidence, tmp_path, "--index-refresh-interval", 2)
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
    saved = saving_words(tmp_path / "saved")
    words = words_of_run(evidence, tmp_path, *saved)
    assert run_on_ranks(_stopped, num_ranks, words, 0) == [[False, 0]] * num_ranks
    versions = IndexVersions(tmp_path / "index")
    assert versions.complete() == []
    assert list(versions.path(0).glob("shard-*.bin")), "what is embedded is kept"
    assert not (tmp_path / "saved").exists()
    assert run_on_ranks(run_refreshed, num_ranks, words)[0][0] == [0, 0, 0, 3, 3, 3]


def test_a_refresh_in_place_is_finished_before_a_stop(tmp_path: Path, evidence: Path) -> None:
    """A resumed run would not make it again, and would differ from one that was not stopped."""
    words = words_of_run(evidence, tmp_path, *saving_words(tmp_path / "saved"))
    assert run_on_ranks(_stopped, 2, words, 3) == [[False, 3]] * 2
    assert IndexVersions(tmp_path / "index").complete() == [0, 3]
    assert run_on_ranks(run_refreshed, 1, words)[0][0] == [3, 3, 3]


def _on_a_full_disk(topology: ProcessTopology, words: list[str]) -> list[Any]:
    usage = shutil.disk_usage("/")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        return run_refreshed(topology, words)


def test_no_version_is_begun_that_the_disk_cannot_hold(tmp_path: Path, evidence: Path) -> None:
    words = words_of_run(evidence, tmp_path, "--index-refresh-interval", 2)
    for versions, state, _ in run_on_ranks(_on_a_full_disk, 2, words):
        assert versions == [0] * 6
        assert state["pending"] is None


def test_a_new_run_keeps_no_version_of_an_earlier_one(tmp_path: Path, evidence: Path) -> None:
    words = words_of_run(evidence, tmp_path, "--index-refresh-interval", 3)
    run_on_ranks(run_refreshed, 1, words)
    versions = IndexVersions(tmp_path / "index")
    versions.path(5).mkdir()
    versions.request(IndexRequest(5, "encoder"))
    run_on_ranks(run_refreshed, 1, [*words, "--seed", "5", "--train-iters", "2"])
    assert [path.name for path in (tmp_path / "index").glob("version-*")] == ["version-0000000"]
    assert versions.requested() is None
