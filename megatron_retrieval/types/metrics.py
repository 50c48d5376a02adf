"""Numbers about a batch that know how they add up over ranks, micro-batches and batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """A number about a global batch.

    Attributes:
        part: scalar, what this rank and micro-batch contribute; the sum of all parts is the number.
    """

    part: Tensor

    def __add__(self, other: Metric) -> Self:
        """With the part of another micro-batch."""
        return replace(self, part=self.part + other.part)

    def __mul__(self, weight: float) -> Self:
        """With a part that counts so much; 0 for a filler's."""
        return replace(self, part=self.part * weight)


@dataclass(frozen=True)
class Count(Metric):
    """How many there are; counts of batches add up."""


@dataclass(frozen=True)
class Mean(Metric):
    """A mean over the things of a global batch, such as questions or tokens.

    Attributes:
        over: how many things; the means of batches are weighted by it.
    """

    over: Tensor | float


class Rate(Mean):
    """A mean of hits, which are 0 or 1; reported with its 95 % interval."""


Metrics = Mapping[str, Metric]


def add_metrics(sums: dict[str, Metric], parts: Metrics) -> None:
    """Add the parts of a micro-batch to those of the micro-batches before."""
    for name, metric in parts.items():
        sums[name] = sums[name] + metric if name in sums else metric
