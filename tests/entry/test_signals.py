"""Stop signals, as they reach a process, its launcher, or both."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from programs import PATIENCE_SECONDS, losses, start, wait_for_step
from test_finetune import command as finetune

from megatron_retrieval.data.stores.evidence import Passage
from megatron_retrieval.index.bm25 import LexicalConfig, build_lexical_index
from megatron_retrieval.utils.signals import STOP_SIGNALS, StopSignal, leaving_on_signals

LATEST = "latest_checkpointed_iteration.txt"
USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}


@pytest.fixture(autouse=True)
def _as_in_the_foreground() -> Iterator[None]:
    """Tests that a shell runs in the background, or nohup, would ignore both."""
    before = {number: signal.signal(number, usual) for number, usual in USUAL.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_processes_whose_torchrun_is_gone_save_and_end(tmp_path: Path) -> None:
    """torchrun does not forward USR1, it dies of it."""
    run, saved = tmp_path / "run", tmp_path / "saved"
    flags = ["--train-iters", "100000", "--output-dir", str(run), "--save", str(saved), "--save-interval", "1000000"]
    python, *words = finetune(tmp_path, *flags)
    torchrun = start([python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *words])
    wait_for_step(run, 3, torchrun)
    ranks = [child for child in psutil.Process(torchrun.pid).children() if "tasks/main.py" in child.cmdline()]
    assert len(ranks) == 2
    torchrun.send_signal(signal.SIGUSR1)
    assert torchrun.wait(PATIENCE_SECONDS) == -signal.SIGUSR1
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
    assert int((saved / LATEST).read_text()) == losses(run)[-1][0]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_build_that_is_stopped_leaves_nothing_half_written(tmp_path: Path, number: signal.Signals) -> None:
    def passages() -> Iterator[Passage]:
        yield Passage("1", "a title", "and a text")
        assert list(tmp_path.iterdir()), "something is begun"
        signal.raise_signal(number)
        yield Passage("2", "another title", "and another text")

    with pytest.raises(SystemExit) as left, leaving_on_signals():
        build_lexical_index(passages(), 2, LexicalConfig(), "evidence", tmp_path / "bm25")
    assert left.value.code == 128 + number
    assert not list(tmp_path.iterdir())


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with leaving_on_signals(), StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.received
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interruption_does_not_wait_for_the_step() -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.received
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
