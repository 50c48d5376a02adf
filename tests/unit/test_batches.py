"""Order and loader: functions of the iteration, in the background, with errors that surface."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pytest

from megatron_retrieval.data.examples.batches import BatchLoader, Bundles, EpochSampler
from megatron_retrieval.data.examples.data_sets import DataSets, DataSetSampler

Seen = tuple[list[int], int, int, int, int]


class _Recorder:
    """A dataset whose batch is what it was asked for."""

    def __init__(self, fail_at: int = -1) -> None:
        self.fail_at, self.calls = fail_at, 0

    def __len__(self) -> int:
        return 10

    def batch(self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int, dp_size: int) -> Seen:
        self.calls += 1
        if self.calls - 1 == self.fail_at:
            raise KeyError("broken example")
        return list(indices), epoch, first_position, dp_rank, dp_size


def test_every_epoch_is_a_new_order_of_everything() -> None:
    sampler = EpochSampler(10, 4, seed=1)
    assert sampler.batches_per_epoch == 3
    epochs = []
    for epoch in range(3):
        batches = [sampler.batch(epoch * 3 + number) for number in range(3)]
        assert [batch.epoch for batch in batches] == [epoch] * 3
        assert [batch.first_position for batch in batches] == [0, 4, 8]
        assert [len(batch.indices) for batch in batches] == [4, 4, 2]
        epochs.append([index for batch in batches for index in batch.indices])
        assert sorted(epochs[-1]) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_depends_on_the_seed_and_the_iteration_alone() -> None:
    sampler = EpochSampler(10, 4, seed=1)
    backwards = [sampler.batch(iteration) for iteration in reversed(range(9))]
    assert backwards[::-1] == [EpochSampler(10, 4, seed=1).batch(iteration) for iteration in range(9)]
    assert sampler.batch(0) != EpochSampler(10, 4, seed=2).batch(0)
    assert EpochSampler(10, 4, seed=1, shuffle=False).batch(5) == (1, 8, [8, 9])


def test_every_batch_is_of_one_data_set_in_proportion_to_the_weights() -> None:
    sizes = (10, 25, 7)
    sampler = DataSetSampler(DataSets(sizes, (2.0, 1.0, 1.0)), 4, seed=1)
    batches = [sampler.batch(iteration) for iteration in range(400)]
    starts = np.cumsum([0, *sizes])
    drawn = [int(np.searchsorted(starts, batch.indices[0], side="right")) - 1 for batch in batches]
    counts = np.bincount(drawn)
    assert abs(counts - [200, 100, 100]).max() < 30
    for number, size in enumerate(sizes):
        own = [batch for batch, its in zip(batches, drawn, strict=True) if its == number]
        per_epoch = -(-size // 4)
        for epoch in range(len(own) // per_epoch):
            seen = own[epoch * per_epoch :][:per_epoch]
            assert {batch.epoch for batch in seen} == {epoch}
            expected = list(range(starts[number], starts[number + 1]))
            assert sorted(index for batch in seen for index in batch.indices) == expected
    anew = DataSetSampler(DataSets(sizes, (2.0, 1.0, 1.0)), 4, seed=1)
    assert [anew.batch(iteration) for iteration in reversed(range(400))] == batches[::-1]
    far = anew.batch(10_000)  # beyond the draws that were made at once
    assert DataSetSampler(DataSets(sizes, (2.0, 1.0, 1.0)), 4, seed=1).batch(10_000) == far


def test_bundles_stay_within_their_data_set() -> None:
    groups = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    bundles = Bundles(groups, np.arange(8), size=2)
    sampler = DataSetSampler(DataSets((4, 4), (1.0, 1.0)), 4, seed=1, bundles=bundles)
    for iteration in range(20):
        indices = sampler.batch(iteration).indices
        assert sorted(indices) in ([0, 1, 2, 3], [4, 5, 6, 7])
        assert groups[indices[0]] == groups[indices[1]]


def test_batch_size_does_not_change_the_order() -> None:
    small = [index for number in range(5) for index in EpochSampler(10, 2, seed=3).batch(number).indices]
    assert small == EpochSampler(10, 10, seed=3).batch(0).indices


def test_bundles_keep_groups_together() -> None:
    """Every bundle is full but the last of its group, and is drawn anew in each epoch."""
    groups = np.array([0, 1, 0, 1, 0, 1, 0, 2, 0, 2])
    items = np.array([0, 1, 2, 3, 2, 1, 4, 5, 0, 5])
    sampler = EpochSampler(10, 10, seed=1, bundles=Bundles(groups, items, size=2))
    orders = [sampler.batch(epoch).indices for epoch in range(4)]
    for order in orders:
        assert sorted(order) == list(range(10))
        runs = [list(run) for _, run in groupby(order, key=groups.__getitem__)]
        assert sum(len(run) % 2 for run in runs) <= 2  # groups 0 and 1 have an odd number of examples
        assert {index for run in runs if len(run) >= 2 for index in run} >= {7, 9}
    assert len({tuple(order) for order in orders}) == 4
    assert EpochSampler(10, 4, seed=1, bundles=Bundles(groups, items, 2)).batch(1).indices == orders[0][4:8]


def test_examples_that_share_an_item_stand_side_by_side() -> None:
    items = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3])
    sampler = EpochSampler(10, 10, seed=1, bundles=Bundles(np.zeros(10, np.int64), items, size=10))
    orders = [items[sampler.batch(epoch).indices].tolist() for epoch in range(8)]
    assert all(len([item for item, _ in groupby(order)]) == 4 for order in orders)
    assert len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_resuming_continues_the_stream(prefetch: int) -> None:
    sampler = EpochSampler(10, 4, seed=1)
    loader = BatchLoader(_Recorder(), sampler, dp_rank=1, dp_size=2, prefetch=prefetch)
    stream = loader.iterate()
    whole = [next(stream) for _ in range(8)]
    resumed = loader.iterate(5)
    assert [next(resumed) for _ in range(3)] == whole[5:]
    epoch, first, indices = sampler.batch(4)
    assert whole[4] == (indices, epoch, first, 1, 2)


def test_prepares_ahead_but_not_without_bound() -> None:
    dataset = _Recorder()
    stream = BatchLoader(dataset, EpochSampler(10, 4, seed=1), prefetch=2).iterate()
    next(stream)
    deadline = time.monotonic() + 5
    while dataset.calls < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert dataset.calls == 4  # one used, two ready, one waiting to be


def test_errors_surface_after_the_batches_before_them() -> None:
    stream = BatchLoader(_Recorder(fail_at=2), EpochSampler(10, 4, seed=1)).iterate()
    next(stream)
    next(stream)
    with pytest.raises(KeyError, match="broken example"):
        next(stream)


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    stream = BatchLoader(_Recorder(), EpochSampler(10, 4, seed=1)).iterate()
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
