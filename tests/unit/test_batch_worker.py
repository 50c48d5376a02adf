"""The thread that owns the models: it batches, takes turns, and outlives what goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from megatron_retrieval.applications.serve.batching import BatchWorker, BusyError, StoppingError

PATIENCE_SECONDS = 60


class Recorder:
    """Work that waits to be released, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[str]]] = []
        self.begun, self.released = threading.Event(), threading.Event()

    def __call__(self, key: str, items: Sequence[str]) -> list[str]:
        self.begun.set()
        assert self.released.wait(PATIENCE_SECONDS)
        self.batches.append((key, list(items)))
        if "poison" in items:
            raise ValueError("poison")
        return [f"{key} {item}" for item in items]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def worker(recorder: Recorder) -> Iterator[BatchWorker[str, str, str]]:
    worker: BatchWorker[str, str, str] = BatchWorker(recorder, lambda key: 2 if key == "slow" else 4, max_waiting=9)
    yield worker
    recorder.released.set()
    worker.stop()


def occupy(worker: BatchWorker[str, str, str], recorder: Recorder) -> None:
    """Have it busy with a first item, so that what follows waits."""
    worker.submit("quick", "first")
    assert recorder.begun.wait(PATIENCE_SECONDS)


def test_what_waits_makes_up_batches_and_keys_take_turns(
    worker: BatchWorker[str, str, str], recorder: Recorder
) -> None:
    occupy(worker, recorder)
    slow = [worker.submit("slow", f"s{n}") for n in range(4)]
    quick = [worker.submit("quick", f"q{n}") for n in range(5)]
    assert worker.num_waiting == 9
    recorder.released.set()
    assert [future.result(PATIENCE_SECONDS) for future in slow + quick] == [
        *(f"slow s{n}" for n in range(4)),
        *(f"quick q{n}" for n in range(5)),
    ]
    assert recorder.batches[1:] == [
        ("slow", ["s0", "s1"]),
        ("quick", ["q0", "q1", "q2", "q3"]),
        ("slow", ["s2", "s3"]),
        ("quick", ["q4"]),
    ]
    assert (worker.num_batches, worker.num_items) == (5, 10)


def test_one_item_at_fault_spoils_no_other(worker: BatchWorker[str, str, str], recorder: Recorder) -> None:
    occupy(worker, recorder)
    futures = [worker.submit("quick", item) for item in ("a", "poison", "b")]
    recorder.released.set()
    assert futures[0].result(PATIENCE_SECONDS) == "quick a"
    with pytest.raises(ValueError, match="poison"):
        futures[1].result(PATIENCE_SECONDS)
    assert futures[2].result(PATIENCE_SECONDS) == "quick b"
    assert worker.submit("quick", "later").result(PATIENCE_SECONDS) == "quick later"


def test_too_much_is_refused_and_what_nobody_waits_for_is_left_out(
    worker: BatchWorker[str, str, str], recorder: Recorder
) -> None:
    occupy(worker, recorder)
    futures = [worker.submit("quick", str(n)) for n in range(9)]
    with pytest.raises(BusyError):
        worker.submit("quick", "one too many")
    assert futures[0].cancel()
    recorder.released.set()
    futures[-1].result(PATIENCE_SECONDS)
    assert "0" not in [item for _, items in recorder.batches for item in items]


def test_a_stop_finishes_what_waits_and_takes_no_more(worker: BatchWorker[str, str, str], recorder: Recorder) -> None:
    occupy(worker, recorder)
    futures = [worker.submit("slow", str(n)) for n in range(3)]
    recorder.released.set()
    worker.stop()
    assert [future.result(0) for future in futures] == ["slow 0", "slow 1", "slow 2"]
    with pytest.raises(StoppingError):
        worker.submit("slow", "late")
