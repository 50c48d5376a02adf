"""A process beside training: started again when it ends, with pauses, and left alone where that leads nowhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from megatron_retrieval.refresh import worker_supervisor
from megatron_retrieval.refresh.worker_supervisor import MAX_FAILURES, WorkerSupervisor
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions

CPU = torch.device("cpu")
TIMEOUT = 1e6


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def supervise(tmp_path: Path, clock: _Clock) -> Iterator[Callable[[str], WorkerSupervisor]]:
    """Supervises a Python program, which finds the words that are added in `sys.argv`."""
    started: list[WorkerSupervisor] = []

    def supervise(program: str) -> WorkerSupervisor:
        command = [sys.executable, "-S", "-c", f"import json, os, sys, time; {program}"]
        started.append(WorkerSupervisor(command, IndexVersions(tmp_path), 3, CPU, timeout_seconds=TIMEOUT, clock=clock))
        return started[-1]

    yield supervise
    for supervisor in started:
        supervisor.stop()


def _look_until(supervisor: WorkerSupervisor, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        supervisor.look()
        time.sleep(0.01)


def _said(folder: Path) -> list[str]:
    path = folder / "worker-3.log"
    return path.read_text().splitlines() if path.exists() else []


def test_a_worker_is_no_process_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supervise: Callable[[str], WorkerSupervisor]
) -> None:
    job = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    for name in job:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    said = "json.dumps([[*os.environ], sys.argv[1:], os.getppid()])"
    supervisor = supervise(f"print({said}, flush=True); time.sleep(600)")
    _look_until(supervisor, lambda: len(_said(tmp_path)) == 1)
    names, words, parent = json.loads(_said(tmp_path)[0])
    assert not set(job) & set(names)
    assert "OMP_NUM_THREADS" in names
    assert words == ["--worker", "3", "--parent-pid", str(parent)]


def test_a_dead_worker_is_reported_and_started_again_after_a_pause(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    clock: _Clock,
    supervise: Callable[[str], WorkerSupervisor],
) -> None:
    supervisor = supervise("print('no vectors today', flush=True); os._exit(7)")
    _look_until(supervisor, lambda: bool(caplog.messages))
    assert "worker 3 ended with status 7" in caplog.text
    assert "no vectors today" in caplog.text
    assert "started again in 1 s" in caplog.text
    for _ in range(20):
        supervisor.look()
        time.sleep(0.01)
    assert len(_said(tmp_path)) == 1
    clock.now += 1
    _look_until(supervisor, lambda: len(caplog.messages) == 2)
    assert "started again in 2 s" in caplog.messages[1]
    assert caplog.messages[1].count("no vectors today") == 1, "only what it said since its last start"


def test_a_request_is_given_up_and_another_one_tried(
    tmp_path: Path, clock: _Clock, supervise: Callable[[str], WorkerSupervisor]
) -> None:
    versions, first = IndexVersions(tmp_path), IndexRequest(10, "encoder")
    versions.request(first)
    supervisor = supervise("print('started', flush=True); os._exit(1)")

    def given_up(request: IndexRequest) -> bool:
        clock.now += 60
        return versions.is_given_up(request)

    _look_until(supervisor, lambda: given_up(first))
    assert len(_said(tmp_path)) == MAX_FAILURES
    versions.withdraw()
    for _ in range(20):
        clock.now += 60
        supervisor.look()
    assert len(_said(tmp_path)) == MAX_FAILURES, "nothing is asked for"
    versions.request(IndexRequest(20, "encoder"))
    _look_until(supervisor, lambda: given_up(IndexRequest(20, "encoder")))
    assert len(_said(tmp_path)) == 2 * MAX_FAILURES


def test_progress_keeps_a_request_alive(
    tmp_path: Path, clock: _Clock, supervise: Callable[[str], WorkerSupervisor]
) -> None:
    versions, request = IndexVersions(tmp_path), IndexRequest(10, "encoder")
    versions.request(request)
    versions.path(10).mkdir()
    folder = str(versions.path(10))
    supervisor = supervise(
        f"open({folder!r} + '/' + str(time.time_ns()), 'w').write('x'); print('one more'); sys.exit(1)"
    )

    def far_enough() -> bool:
        clock.now += 60
        return len(_said(tmp_path)) > 2 * MAX_FAILURES

    _look_until(supervisor, far_enough)
    assert not versions.is_given_up(request)


def test_stop_ends_the_worker(tmp_path: Path, supervise: Callable[[str], WorkerSupervisor]) -> None:
    supervisor = supervise("print(os.getpid(), flush=True); time.sleep(600)")
    _look_until(supervisor, lambda: len(_said(tmp_path)) == 1)
    process = Path("/proc") / _said(tmp_path)[0]
    assert process.exists()
    supervisor.stop()
    assert not process.exists()


def test_a_worker_that_adds_nothing_is_killed_and_started_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    clock: _Clock,
    supervise: Callable[[str], WorkerSupervisor],
) -> None:
    """Even one that hears no signal any more."""
    monkeypatch.setattr(worker_supervisor, "STOP_SECONDS", 0.1)
    versions, request = IndexVersions(tmp_path), IndexRequest(10, "encoder")
    supervisor = supervise("import signal; print('started', flush=True); os.kill(os.getpid(), signal.SIGSTOP)")
    _look_until(supervisor, lambda: len(_said(tmp_path)) == 1)
    clock.now += 2 * TIMEOUT
    supervisor.look()
    assert not caplog.messages, "nothing is asked for"
    versions.request(request)
    versions.path(10).mkdir()
    supervisor.look()
    for size in range(3):
        (versions.path(10) / ".shard-00000.part").write_bytes(b"x" * size)
        clock.now += 0.9 * TIMEOUT
        supervisor.look()
    assert not caplog.messages, "it is slow, and gets on"
    clock.now += 0.9 * TIMEOUT
    supervisor.look()
    clock.now += 0.9 * TIMEOUT
    supervisor.look()
    assert "worker 3 was killed: it added nothing for too long; it is started again" in caplog.text
    clock.now += 60
    _look_until(supervisor, lambda: len(_said(tmp_path)) == 2)
