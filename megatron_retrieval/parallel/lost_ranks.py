"""Says which rank is at fault where a collective fails: the backends name an address at best.

A rank that fails leaves a word in the store that all ranks share. One whose collective fails calls the roll there:
those that left their error are quoted, and those that say nothing do not answer any more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from megatron_retrieval.errors import LostRankError, MegatronRetrievalError

Value = TypeVar("Value")

#: the others notice within this time at most, each by its own collective
ROLL_CALL_SECONDS = 5.0
_LOOK_SECONDS = 0.1
#: what a rank leaves whose collective failed
_WAITED = "waited"
#: gloo raises plain RuntimeErrors
_WORDS_OF_GLOO = ("gloo", "Connection closed by peer", "Connection reset by peer")


@contextlib.contextmanager
def naming_lost_ranks(rank: int, world_size: int, timeout_minutes: float) -> Iterator[None]:
    """Wrap what ranks do together.

    Raises:
        LostRankError: in place of a failed collective, where another rank is known to be at fault.
    """
    try:
        yield
    except BaseException as error:
        if world_size > 1:
            store = PrefixStore("ended", dist.distributed_c10d._get_default_store())
            roll = _Roll(store, rank, world_size, min(ROLL_CALL_SECONDS, 60 * timeout_minutes))
            if not _is_of_collective(error):
                roll.leave(_described(error))
            elif said := roll.call():
                raise LostRankError(_sentence(said, timeout_minutes)) from error
        raise


class _Roll:
    """The words of all ranks.

    Args:
        seconds: how long the others are waited for.
    """

    def __init__(self, store: Store, rank: int, world_size: int, seconds: float) -> None:
        self._store, self._rank, self._seconds = store, rank, seconds
        self._others = [other for other in range(world_size) if other != rank]

    def leave(self, word: str) -> None:
        """Say how this rank has ended."""
        _within(self._seconds, lambda: self._store.set(str(self._rank), word))

    def call(self) -> Mapping[int, str]:
        """The ranks that ended, with their error, and those that say nothing, with an empty word; none where the store
        itself does not answer."""
        self.leave(_WAITED)
        words: dict[int, str] = {}

        def ask() -> bool:
            deadline = time.monotonic() + self._seconds
            while len(words) < len(self._others) and time.monotonic() < deadline:
                for rank in self._others:
                    if rank not in words and self._store.check([str(rank)]):
                        words[rank] = self._store.get(str(rank)).decode()
                time.sleep(_LOOK_SECONDS)
            return True

        answered = _within(2 * self._seconds, ask)
        said = {rank: words.get(rank, "") for rank in self._others} if answered else {}
        return {rank: word for rank, word in said.items() if word != _WAITED}


def _within(seconds: float, work: Callable[[], Value]) -> Value | None:
    """What the work returns; None where it fails or takes longer, as it does where the store's process is stopped."""
    results: list[Value] = []

    def run() -> None:
        with contextlib.suppress(RuntimeError):
            results.append(work())

    thread = threading.Thread(target=run, name="roll call", daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def _is_of_collective(error: BaseException) -> bool:
    is_gloo = type(error) is RuntimeError and any(word in str(error) for word in _WORDS_OF_GLOO)
    return isinstance(error, dist.DistError) or is_gloo


def _described(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it left with status {error.code}"
    return str(error) if isinstance(error, MegatronRetrievalError) else f"{type(error).__name__}: {error}"


def _sentence(said: Mapping[int, str], timeout_minutes: float) -> str:
    ended = [f"rank {rank} has ended: {word}" for rank, word in said.items() if word]
    silent = [str(rank) for rank, word in said.items() if not word]
    if silent:
        ranks = f"rank {silent[0]} does" if len(silent) == 1 else f"ranks {', '.join(silent)} do"
        ended.append(
            f"{ranks} not answer any more: killed, stopped, or without a network. The others waited for at most "
            f"{timeout_minutes:g} minutes (--distributed-timeout-minutes)."
        )
    return "; ".join(ended)
