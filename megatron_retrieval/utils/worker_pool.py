"""Applies a function to a stream in several processes; results come in order, and few are held in memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from megatron_retrieval.errors import MegatronRetrievalError
from megatron_retrieval.utils.signals import end_with_parent, ignore_stop_signals

State = TypeVar("State")
Task = TypeVar("Task")
Result = TypeVar("Result")
Item = TypeVar("Item")

_AHEAD = 4  # tasks for each worker: enough to keep it busy, few enough to bound the memory


@contextlib.contextmanager
def worker_pool(
    function: Callable[[State, Task], Result], workers: int, open_state: Callable[[], State]
) -> Iterator[Callable[[Iterable[Task]], Iterator[Result]]]:
    """Applies `function` to a stream of tasks; one worker means this process.

    Args:
        function: is given the state of its process and a task; it can be pickled, as can tasks and results.
        workers: number of processes.
        open_state: called once in every process; it can be pickled; its result need not be.

    Raises:
        MegatronRetrievalError: a worker was killed.
    """
    if workers == 1:
        in_this_process = partial(function, open_state())
        yield lambda tasks: map(in_this_process, tasks)
        return
    # not forked from this process: the tokenizer library has threads of its own
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, _start_worker, (open_state,)) as pool:
        try:
            yield lambda tasks: _map_in_order(pool, partial(_apply, function), tasks, workers * _AHEAD)
        except BrokenProcessPool as error:
            advice = "perhaps for lack of memory; try fewer --workers"
            raise MegatronRetrievalError(f"A worker process ended without an error message, {advice}.") from error
        finally:
            pool.shutdown(cancel_futures=True)


def in_tasks(
    items: Iterable[Item], size_of: Callable[[Item], int], max_items: int, max_size: int
) -> Iterator[list[Item]]:
    """Consecutive items as tasks: a task ends with the item that fills it up to one of the limits."""
    task: list[Item] = []
    size = 0
    for item in items:
        task.append(item)
        size += size_of(item)
        if len(task) == max_items or size >= max_size:
            yield task
            task, size = [], 0
    if task:
        yield task


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


#: result of `open_state` in a worker process; the executor offers tasks no other place for it
_state: Any = None


def _start_worker(open_state: Callable[[], Any]) -> None:
    global _state
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker has one core to itself
    ignore_stop_signals()  # a terminal and SLURM send them to all processes
    end_with_parent()  # a pool whose owner is killed would wait for tasks for ever
    _state = open_state()


def _apply(function: Callable[[Any, Task], Result], task: Task) -> Result:
    return function(_state, task)
