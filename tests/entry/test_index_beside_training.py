"""An index that follows its encoder, in processes of its own: whatever dies or is damaged, the next version comes."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import programs
import psutil
import pytest
import torch
from programs import PATIENCE_SECONDS, command, succeed

from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.retrieval.index_versions import IndexVersions
from megatron_retrieval.testing.tiny import write_tiny_evidence

SETTINGS = (
    "-m megatron_retrieval.testing.refreshed_run --device cpu --global-batch-size 4 --no-tensorboard --lr 1e-3 "
    "--train-iters 100000 --step-seconds 0.05 --index-refresh-interval 10"
).split()


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_evidence(tmp_path_factory.mktemp("evidence"))


class _Run:
    """A run in the background; its standard error goes to a file."""

    def __init__(self, folder: Path, evidence: Path, *flags: object, num_processes: int = 1) -> None:
        self.output, self.versions, self._log = folder, IndexVersions(folder / "index"), folder / "stderr.txt"
        folder.mkdir(parents=True, exist_ok=True)
        words = command(*SETTINGS, "--evidence", evidence, "--output-dir", folder, *flags, num_processes=num_processes)
        self._log.unlink(missing_ok=True)
        self.process = programs.start(words, self._log, self._log)

    def stderr(self) -> str:
        return self._log.read_text()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None, f"the run ended:\n{self.stderr()}"
            assert time.monotonic() < deadline, self.stderr()
            time.sleep(0.02)

    def wait_for_end(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)

    def changes(self) -> list[int]:
        """The versions to which the index has changed."""
        path = self.output / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [int(record["index_version"]) for record in records if "index_version" in record]

    def wait_for_changes(self, number: int) -> None:
        """Until the index has changed so many times more."""
        goal = len(self.changes()) + number
        self.wait_for(lambda: len(self.changes()) >= goal)

    def worker(self, number: int = 0) -> psutil.Process:
        """A process that embeds."""
        found: list[psutil.Process] = []

        def is_there() -> bool:
            children = psutil.Process(self.process.pid).children(recursive=True)
            lines = {child: " ".join(child.cmdline()) for child in children}
            words = ("index_worker", f"--worker {number} ")
            found[:] = [child for child, line in lines.items() if all(word in line for word in words)]
            return len(found) == 1

        self.wait_for(is_there)
        return found[0]

    def hold_before_a_change(self) -> Path:
        """Stop the trainer while a version is in the making, and wait until it is made; returns its folder."""
        while True:
            self.wait_for(lambda: self.versions.requested() is not None)
            self.process.send_signal(signal.SIGSTOP)
            request = self.versions.requested()
            if request is not None:
                path = self.versions.path(request.iteration)
                manifest = path / "manifest.json"
                if not manifest.exists():  # else the trainer may have opened it already
                    self.wait_for(manifest.exists)
                    return path
            self.process.send_signal(signal.SIGCONT)
            time.sleep(0.02)

    def end(self) -> None:
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            process.kill()
        self.process.wait()


@pytest.fixture
def start(evidence: Path) -> Iterator[Callable[..., _Run]]:
    runs: list[_Run] = []

    def start(folder: Path, *flags: object, num_processes: int = 1) -> _Run:
        runs.append(_Run(folder, evidence, *flags, num_processes=num_processes))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.end()


def _checked(run: _Run, evidence: Path, again: Path) -> None:
    """The vectors of the last version are those that tools/embed_evidence.py makes of its snapshot, bit for bit."""
    last = run.changes()[-1]
    words = command("tools/embed_evidence.py", "--evidence", evidence, "--retriever", run.versions.snapshot(last))
    succeed([*words, "--output", str(again), "--device", "cpu", "--fp32"])
    made, expected = EmbeddingStore(run.versions.path(last)), EmbeddingStore(again)
    assert made.manifest.identity == expected.manifest.identity
    assert torch.equal(made.vectors(0, len(made)), expected.vectors(0, len(expected)))


def test_a_worker_in_the_background(tmp_path: Path, evidence: Path, start: Callable[..., _Run]) -> None:
    flags = ["--index-refresh-mode", "background", "--save", tmp_path / "saved", "--load", tmp_path / "saved"]
    run = start(tmp_path / "run", *flags, "--save-interval", 20, "--keep-last", 3)
    run.wait_for_changes(1)
    assert run.worker().nice() > psutil.Process(run.process.pid).nice(), "training goes first on shared cores"

    run.worker().kill()
    run.wait_for(lambda: "embedding worker 0 ended with status -9; it is started again" in run.stderr())
    run.wait_for_changes(1)

    shard = run.hold_before_a_change() / "shard-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    run.process.send_signal(signal.SIGCONT)
    refused = f"index version {int(shard.parent.name[-7:])} is refused, and made again: "
    run.wait_for(lambda: refused in run.stderr())
    assert "shard-00002.bin: has" in run.stderr()
    run.wait_for_changes(1)
    assert run.changes()[-1] >= int(shard.parent.name[-7:])

    manifest = run.hold_before_a_change() / "manifest.json"
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**fields, "encoder_fingerprint": "0123456789abcdef"}))
    run.process.send_signal(signal.SIGCONT)
    run.wait_for(lambda: "were made by encoder 0123456789abcdef" in run.stderr())
    run.wait_for_changes(1)
    assert int(manifest.parent.name[-7:]) in run.changes()

    worker = run.worker()
    run.process.kill()
    run.process.wait()
    psutil.wait_procs([worker], timeout=PATIENCE_SECONDS)
    assert not worker.is_running()

    before = run.changes()
    again = start(tmp_path / "run", *flags, "--num-changes", 2)
    assert again.wait_for_end() == 0, again.stderr()
    assert "resumed" in again.stderr()
    assert again.changes()[:-2] == before[: len(again.changes()) - 2]
    _checked(again, evidence, tmp_path / "again")


def test_one_rank_trains_and_two_embed(tmp_path: Path, evidence: Path, start: Callable[..., _Run]) -> None:
    run = start(tmp_path / "run", "--num-embedding-ranks", 2, "--num-changes", 3, num_processes=3)
    run.wait_for_changes(1)
    assert run.worker(1).is_running()
    run.worker(0).kill()
    assert run.wait_for_end() == 0, run.stderr()
    assert "[rank 1] embedding worker 0 ended with status -9; it is started again" in run.stderr()
    assert len(run.changes()) == 3
    _checked(run, evidence, tmp_path / "again")
