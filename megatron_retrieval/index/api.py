"""The contracts of search indexes and of their sources of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from megatron_retrieval.types.search import SearchResult


@runtime_checkable
class SearchIndex(Protocol):
    """Finds the rows whose vectors have the greatest inner product with a query.

    The answer is a function of the vectors and the query alone: scores descend, equal scores are ordered by row,
    and neither the number of ranks or threads nor the size of blocks changes a bit of it. An approximate index may miss
    rows; which ones depends on its settings as well, the order of what it returns does not.
    """

    @property
    def num_rows(self) -> int:
        """Rows of the whole evidence, over all ranks."""

    @property
    def dimension(self) -> int: ...

    def search(
        self, queries: Tensor, k: int, exclude_rows: Tensor | None = None, exclude_ranges: Tensor | None = None
    ) -> SearchResult:
        """The k best rows for each query.

        It may be a collective: every rank must call it, with its own queries, or with none (B = 0).

        Args:
            queries: [B, D] floating point; computed with in float32.
            k: rows wanted, at least 1. Where fewer are left, the last columns hold row -1 and score -inf.
            exclude_rows: [B, E] int64 rows that are no candidates for the query of that line; -1 stands for none.
            exclude_ranges: [B, R, 2] int64 ranges of such rows, first row and end; an empty one stands for none.

        Returns:
            scores [B, k] and rows [B, k], on the device of the queries.
        """


class VectorSource(Protocol):
    """Vectors by row; an `EmbeddingStore` is one."""

    @property
    def dimension(self) -> int: ...

    def __len__(self) -> int: ...

    def vectors(self, start: int, stop: int) -> Tensor:
        """[stop - start, D] in the type that they are kept in."""

    def read(self, start: int, stop: int) -> Tensor:
        """The same, as memory that can be given back: nothing stays mapped."""

    def vectors_of(self, rows: Tensor) -> Tensor:
        """[n, D] of the rows [n] int64, in the stored type."""


@dataclass(frozen=True)
class TensorVectors:
    """A tensor [N, D] as a source."""

    values: Tensor

    @property
    def dimension(self) -> int:
        return self.values.size(1)

    def __len__(self) -> int:
        return self.values.size(0)

    def vectors(self, start: int, stop: int) -> Tensor:
        return self.values[start:stop]

    def read(self, start: int, stop: int) -> Tensor:
        return self.values[start:stop]

    def vectors_of(self, rows: Tensor) -> Tensor:
        return self.values.index_select(0, rows)


@dataclass(frozen=True)
class VectorSlice:
    """The rows start..stop of another source."""

    source: VectorSource
    start: int
    stop: int

    @property
    def dimension(self) -> int:
        return self.source.dimension

    def __len__(self) -> int:
        return self.stop - self.start

    def vectors(self, start: int, stop: int) -> Tensor:
        return self.source.vectors(self.start + start, self.start + stop)

    def read(self, start: int, stop: int) -> Tensor:
        return self.source.read(self.start + start, self.start + stop)

    def vectors_of(self, rows: Tensor) -> Tensor:
        return self.source.vectors_of(rows + self.start)
