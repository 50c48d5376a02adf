"""Tasks of documents go through workers into the files of an unfinished folder, from where these were stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, TypeVar

from megatron_retrieval.utils.partial_folder import PartialFolder


class EncodedTask(Protocol):
    """What a worker makes of a task."""

    @property
    def num_read(self) -> int:
        """Documents that it comes from."""
        ...


Encoded = TypeVar("Encoded", bound=EncodedTask, contravariant=True)


class TaskWriter(Protocol[Encoded]):
    """Appends what workers have made."""

    def write(self, encoded: Encoded, /) -> None:
        """Append one task."""
        ...

    def sync(self) -> dict[str, object]:
        """Flush the files to disk; returns the progress for the journal."""
        ...


def write_tasks(
    tasks: Iterator[list[Any]],
    num_done: int,
    encode: Callable[[Iterable[list[Any]]], Iterator[Encoded]],
    writer: TaskWriter[Encoded],
    partial: PartialFolder,
    bar: Any,
) -> None:
    """Pass over the tasks that an earlier attempt has done, and write the others.

    Args:
        encode: of a worker pool.
        bar: counts documents.
    """
    partial.save(writer.sync())
    for task in islice(tasks, num_done):
        bar.update(len(task))
    for encoded in encode(tasks):
        writer.write(encoded)
        bar.update(encoded.num_read)
        partial.save_if_due(writer.sync)
    partial.save(writer.sync())
