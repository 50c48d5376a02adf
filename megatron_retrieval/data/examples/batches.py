"""The order of the examples and their batches, both functions of the iteration alone: resuming needs one number."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.utils.seeds import generator

Batch_co = TypeVar("Batch_co", covariant=True)
Batch = TypeVar("Batch")


class BatchSource(Protocol[Batch_co]):
    """A dataset: examples by number, and batches of them.

    A batch is a function of the arguments of `batch` and of the run's seed alone. What is drawn for an example (a
    negative, a mask, the answer to learn) is named by (seed, epoch, position of the example in the epoch), so that the
    number of ranks, a restart, and how many batches were made before change nothing.
    """

    def __len__(self) -> int:
        """Examples of an epoch, at least 1."""
        ...

    def batch(self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int, dp_size: int) -> Batch_co:
        """One rank's share of a global batch, on the CPU; called from the loader's thread.

        The B examples are cut into dp_size shares of n = ceil(B / dp_size) slots, in order (see `Share`). Slots behind
        the last example are fillers: valid rows that count nothing in the loss, as the type of the batch says. Token
        ids, lengths and labels are int64, masks are bool.

        Args:
            indices: numbers of the B examples of the global batch, 1 or more, in order.
            epoch: from 0.
            first_position: of the first of them in the order of the epoch.
            dp_rank: which share, from 0.
            dp_size: the number of shares.

        Raises:
            DataError: a file beside the data cannot be read.
        """
        ...


class GlobalBatch(NamedTuple):
    """Which examples an iteration uses."""

    epoch: int
    #: place of the first of them in the order of the epoch
    first_position: int
    indices: list[int]


class Share(NamedTuple):
    """One data-parallel rank's part of a global batch: W ranks hold n slots each, the last ones fillers."""

    #: n, equal on all ranks
    num_slots: int
    #: slot of the global batch that is this rank's first one
    first: int
    #: slots that hold an example; fewer than n where the batch is uneven
    num_real: int

    @classmethod
    def of(cls, num_examples: int, dp_rank: int, dp_size: int) -> Share:
        num_slots = -(-num_examples // dp_size)
        first = dp_rank * num_slots
        return cls(num_slots, first, min(max(num_examples - first, 0), num_slots))

    @property
    def own(self) -> slice:
        """Places of this rank's examples in the global batch."""
        return slice(self.first, self.first + self.num_real)


class Bundles(NamedTuple):
    """Examples of one group stand together in the order of an epoch, `size` at a time, and within a bundle those that
    share an item stand side by side."""

    #: [num_examples] the group of every example
    groups: Rows
    #: [num_examples] what examples may share, for instance their passage
    items: Rows
    size: int

    def part(self, examples: slice) -> Bundles:
        """Of these examples alone."""
        return Bundles(self.groups[examples], self.items[examples], self.size)

    def arrange(self, order: Rows, random: np.random.Generator) -> Rows:
        """A shuffled `order` with the examples of each group cut into bundles, and the bundles shuffled."""
        items = self.items[order]
        first_place = np.full(int(items.max()) + 1, len(order))
        np.minimum.at(first_place, items, np.arange(len(order)))
        by_group = order[np.lexsort((first_place[items], self.groups[order]))]
        groups = self.groups[by_group]
        starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
        place_in_group = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        bundles = np.split(by_group, np.flatnonzero(place_in_group % self.size == 0)[1:])
        return np.concatenate([bundles[number] for number in random.permutation(len(bundles))])


class Sampler(Protocol):
    """Says which examples an iteration, counted from 0, uses: a function of its number, which is all that resuming
    needs."""

    def batch(self, iteration: int) -> GlobalBatch: ...


class EpochSampler:
    """Goes through the examples epoch after epoch, in a new order each time.

    Args:
        num_examples: in the dataset.
        global_batch_size: examples of all ranks together; the last batch of an epoch holds what remains.
        seed: of the run.
        shuffle: False keeps the order of the dataset.
        bundles: how examples are bundled before the bundles are shuffled; default: every example for itself.
    """

    def __init__(
        self,
        num_examples: int,
        global_batch_size: int,
        seed: int,
        shuffle: bool = True,
        bundles: Bundles | None = None,
    ) -> None:
        if num_examples < 1 or global_batch_size < 1:
            raise ValueError(f"nothing to sample: {num_examples} examples in batches of {global_batch_size}")
        self._num_examples, self._batch_size, self._seed, self._shuffle = num_examples, global_batch_size, seed, shuffle
        self._bundles = bundles
        self._order = lru_cache(maxsize=1)(self._order_of_epoch)

    @property
    def batches_per_epoch(self) -> int:
        return -(-self._num_examples // self._batch_size)

    def batch(self, iteration: int) -> GlobalBatch:
        """The examples of an iteration, counted from 0 over all epochs."""
        epoch, number = divmod(iteration, self.batches_per_epoch)
        first = number * self._batch_size
        order = self._order(epoch)[first : first + self._batch_size] if self._shuffle else None
        last = min(first + self._batch_size, self._num_examples)
        return GlobalBatch(epoch, first, list(range(first, last)) if order is None else order.tolist())

    def _order_of_epoch(self, epoch: int) -> Rows:
        random = generator(self._seed, "example-order", epoch)
        order: Rows = random.permutation(self._num_examples)
        return order if self._bundles is None else self._bundles.arrange(order, random)


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class BatchLoader(Generic[Batch]):
    """Prepares this rank's share of the batches in a background thread.

    Args:
        dataset: makes a batch from the indices of its examples.
        sampler: names the examples of an iteration.
        dp_rank: which share of each global batch.
        dp_size: the number of shares.
        prefetch: batches prepared ahead.
    """

    def __init__(
        self, dataset: BatchSource[Batch], sampler: Sampler, dp_rank: int = 0, dp_size: int = 1, prefetch: int = 2
    ) -> None:
        self._dataset, self._sampler, self._rank, self._size = dataset, sampler, dp_rank, dp_size
        self._prefetch = prefetch

    def iterate(self, start_iteration: int = 0) -> Iterator[Batch]:
        """Yield the batches from `start_iteration` on, without end.

        What the dataset raises surfaces here, in its turn. Closing the iterator ends the thread.
        """
        ready: queue.Queue[Batch | _Failure] = queue.Queue(max(1, self._prefetch))
        stop = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, stop, start_iteration), name="batches", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, _Failure):
                    raise item.error
                yield item
        finally:
            stop.set()
            with contextlib.suppress(queue.Empty):
                while True:  # makes room, so that a waiting thread sees the signal at once
                    ready.get_nowait()
            thread.join()

    def _fill(self, ready: queue.Queue[Batch | _Failure], stop: threading.Event, iteration: int) -> None:
        try:
            while not stop.is_set():
                epoch, first, indices = self._sampler.batch(iteration)
                ready.put(self._dataset.batch(indices, epoch, first, self._rank, self._size))
                iteration += 1
        except BaseException as error:  # noqa: BLE001 - raised again where the batches are used
            ready.put(_Failure(error))


def batches_in_order(
    dataset: BatchSource[Batch], batch_size: int, dp_rank: int, dp_size: int, max_batches: int | None = None
) -> Callable[[], Iterator[Batch]]:
    """A function that goes once through the dataset, or its first `max_batches` global batches; this rank's shares."""
    sampler = EpochSampler(len(dataset), batch_size, seed=0, shuffle=False)
    loader = BatchLoader(dataset, sampler, dp_rank, dp_size)
    num_batches = min(sampler.batches_per_epoch, max_batches or sampler.batches_per_epoch)
    return lambda: itertools.islice(loader.iterate(0), num_batches)
