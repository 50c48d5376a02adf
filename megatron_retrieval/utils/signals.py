"""What ends a process before its work is done: a signal, or the end of the process that started it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
#: added to the number of a signal, as shells do
SIGNAL_STATUS = 128
#: between two looks at the parent
LOOK_SECONDS = 0.2
#: an orphan that has not stopped after this long is killed: it may wait for a rank that has ended
ORPHAN_SECONDS = 600.0


class StopSignal:
    """Within the block, a stop signal sets `received` instead of ending the process; a second SIGINT interrupts it.

    Attributes:
        received: whether one came.
        number: the one that came; None before.
    """

    def __init__(self) -> None:
        self.received = False
        self.number: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        self._previous = _handle(self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _restore(self._previous)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.number:
            raise KeyboardInterrupt
        self.received, self.number = True, number


@contextlib.contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Within the block, a stop signal raises SystemExit, so that what is half-written is removed; the status is the
    shell's for the signal."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(SIGNAL_STATUS + number)

    with handling_stop_signals(leave):
        yield


@contextlib.contextmanager
def handling_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block, a stop signal calls `handler` with its number."""
    previous = _handle(handler)
    try:
        yield
    finally:
        _restore(previous)


def ignore_stop_signals() -> None:
    """For a process that ends with its parent, which decides what a signal means."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def stop_with_launcher() -> None:
    """Under torchrun: stop soon after it has ended, as with SIGTERM, at which training saves. Elsewhere do nothing: a
    process that a shell has started may outlive it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:

        def stop() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(ORPHAN_SECONDS)
            os.kill(os.getpid(), signal.SIGKILL)

        when_parent_ends(stop)


def end_with_parent(parent_pid: int | None = None) -> None:
    """End soon after the parent, at any moment: files are written atomically.

    Args:
        parent_pid: the process that started this one; it may have ended already. Default: as it is now.
    """
    when_parent_ends(lambda: os._exit(1), parent_pid)


def when_parent_ends(act: Callable[[], None], parent_pid: int | None = None) -> None:
    """Call `act` in a thread, soon after the parent has ended, however it did."""
    pid, owner = parent_pid or os.getppid(), multiprocessing.parent_process()

    def watch() -> None:
        if parent_pid is None and owner is not None and owner.pid != pid:  # a fork server stands between them
            wait([owner.sentinel])
        else:
            while os.getppid() == pid:
                time.sleep(LOOK_SECONDS)
        act()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Have stop signals handled, but for those that are ignored (under nohup); returns what did so before."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        return {}
    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
