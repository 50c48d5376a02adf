"""A function applied to a stream in several processes: results in order, few of them in memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from megatron_retrieval.errors import MegatronRetrievalError

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 4  # tasks for each worker: enough to keep it busy, few enough to bound the memory


@contextlib.contextmanager
def worker_pool(
    function: Callable[[Task], Result], workers: int, start: Callable[..., None], settings: tuple[Any, ...]
) -> Iterator[Callable[[Iterable[Task]], Iterator[Result]]]:
    """A version of `function` that maps a stream; one worker means this process.

    Args:
        function: of a module's top level, as are `start` and what passes between the processes.
        workers: number of processes.
        start: called once in every worker, with `settings`, before its first task.

    Raises:
        MegatronRetrievalError: a worker was killed.
    """
    if workers == 1:
        start(*settings)
        yield lambda tasks: map(function, tasks)
        return
    # not forked from this process: the tokenizer library has threads of its own
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, _start_worker, (start, settings)) as pool:
        try:
            yield lambda tasks: _map_in_order(pool, function, tasks, workers * _AHEAD)
        except BrokenProcessPool as error:
            advice = "perhaps for lack of memory; try fewer --workers"
            raise MegatronRetrievalError(f"A worker process ended without a word, {advice}.") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _map_in_order(
    pool: ProcessPoolExecutor, function: Callable[[Task], Result], tasks: Iterable[Task], max_pending: int
) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    for task in tasks:
        pending.append(pool.submit(function, task))
        if len(pending) >= max_pending:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _start_worker(start: Callable[..., None], settings: tuple[Any, ...]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker has one core to itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*settings)


def _end_with_parent() -> None:
    """A pool whose owner is killed would otherwise wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
