"""One thread that does waiting work in batches: what comes while a batch runs makes up the next."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from megatron_retrieval.utils.logging import get_logger

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")

log = get_logger("serve")


class BusyError(Exception):
    """As much work waits as may."""


class StoppingError(Exception):
    """No more work is taken."""


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    future: Future[Result] = field(default_factory=Future)


class BatchWorker(Generic[Key, Item, Result]):
    """Runs items of one key together; keys take turns, so that slow work holds up quick work for one batch at most.

    Args:
        run: does a batch, in the worker's thread alone; one result per item, in their order.
        batch_size: the most items of a key that run together.
        max_waiting: items that may wait.

    Attributes:
        num_batches: batches run so far.
        num_items: items in them.
    """

    def __init__(
        self,
        run: Callable[[Key, Sequence[Item]], Sequence[Result]],
        batch_size: Callable[[Key], int],
        max_waiting: int,
    ) -> None:
        self._run, self._batch_size, self._max_waiting = run, batch_size, max_waiting
        self._queues: OrderedDict[Key, deque[_Waiting[Item, Result]]] = OrderedDict()
        self._changed = threading.Condition()
        self._is_stopping = False
        self.num_batches, self.num_items = 0, 0
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Items that no batch has taken yet."""
        with self._changed:
            return sum(map(len, self._queues.values()))

    def submit(self, key: Key, item: Item) -> Future[Result]:
        """Have an item done; cancelling the future of one that waits takes it out.

        Raises:
            BusyError: too many wait.
            StoppingError: after `stop`.
        """
        waiting: _Waiting[Item, Result] = _Waiting(item)
        with self._changed:
            if self._is_stopping:
                raise StoppingError
            if sum(map(len, self._queues.values())) >= self._max_waiting:
                raise BusyError
            self._queues.setdefault(key, deque()).append(waiting)
            self._changed.notify()
        return waiting.future

    def stop(self) -> None:
        """Take no more work, finish what waits, end the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            key, batch = taken
            if batch:
                self._finish(key, batch)

    def _take(self) -> tuple[Key, list[_Waiting[Item, Result]]] | None:
        """The next batch, of the key whose turn it is; None where no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._queues or self._is_stopping)
            if not self._queues:
                return None
            key, queue = self._queues.popitem(last=False)
            taken = [queue.popleft() for _ in range(min(len(queue), self._batch_size(key)))]
            if queue:
                self._queues[key] = queue  # the others' turn first
        return key, [waiting for waiting in taken if waiting.future.set_running_or_notify_cancel()]

    def _finish(self, key: Key, batch: list[_Waiting[Item, Result]]) -> None:
        self.num_batches, self.num_items = self.num_batches + 1, self.num_items + len(batch)
        try:
            pairs = list(zip(batch, self._run(key, [waiting.item for waiting in batch]), strict=True))
        except Exception as error:
            if len(batch) > 1:  # one item is at fault: the others are done without it
                for waiting in batch:
                    self._finish(key, [waiting])
                return
            log.exception("work of kind %s failed", key)
            batch[0].future.set_exception(error)
            return
        for waiting, result in pairs:
            waiting.future.set_result(result)
