"""Several data sets in one run: every batch is of one of them, drawn in proportion to weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_retrieval.data.examples.batches import Bundles, EpochSampler, GlobalBatch
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.utils.seeds import derive_seed, fractions

#: draws made at once
_DRAWS = 1 << 12


@dataclass(frozen=True)
class DataSets:
    """How the examples of a run are divided.

    Attributes:
        sizes: examples of each data set, which stand one behind the other.
        weights: in proportion to which batches are drawn from them.
    """

    sizes: Sequence[int]
    weights: Sequence[float]


class DataSetSampler:
    """Draws a data set for every iteration, and goes through each epoch after epoch; a function of the iteration.

    Args:
        global_batch_size: see `EpochSampler`.
        bundles: of the examples of all data sets.
    """

    def __init__(
        self, data_sets: DataSets, global_batch_size: int, seed: int, *, bundles: Bundles | None = None
    ) -> None:
        self._seed, self._starts = seed, np.cumsum([0, *data_sets.sizes])
        self._upper = np.cumsum(data_sets.weights) / sum(data_sets.weights)
        self._drawn = np.empty(0, np.int64)
        self._samplers = [
            EpochSampler(
                size,
                global_batch_size,
                derive_seed(seed, "data-set", number),
                bundles=None if bundles is None else bundles.part(slice(start, start + size)),
            )
            for number, (start, size) in enumerate(zip(self._starts, data_sets.sizes, strict=False))
        ]

    def batch(self, iteration: int) -> GlobalBatch:
        """The examples of an iteration, counted from 0; epoch and position are those of its data set."""
        drawn = self._draws(iteration + 1)
        number = int(drawn[iteration])
        epoch, first, indices = self._samplers[number].batch(int((drawn[:iteration] == number).sum()))
        return GlobalBatch(epoch, first, [index + int(self._starts[number]) for index in indices])

    def _draws(self, count: int) -> Rows:
        """The data sets of the first `count` iterations or more."""
        if count > len(self._drawn):
            places = np.arange(count + _DRAWS, dtype=np.int64)
            draws = fractions(places, self._seed, "data-set-of-batch")
            self._drawn = np.searchsorted(self._upper[:-1], draws, side="right")
        return self._drawn
