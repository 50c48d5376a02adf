"""Reads the next item in a thread while the caller works on the current one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def read_ahead(items: Sequence[Item], read: Callable[[Item], Value]) -> Iterator[tuple[Item, Value]]:
    """(item, what `read` makes of it) one after the other; the next one is read in a thread while one is in use, and
    no more are held."""
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        pending = [reader.submit(read, item) for item in items[:1]]
        for number, item in enumerate(items):
            value = pending.pop().result()
            pending += [reader.submit(read, after) for after in items[number + 1 : number + 2]]
            yield item, value
