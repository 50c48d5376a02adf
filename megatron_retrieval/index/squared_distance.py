"""Search by Euclidean distance with an index of inner products.

-|q - x|^2 / 2 = q.x - |x|^2 / 2 - |q|^2 / 2, whose last term orders no rows: x~ = [x, -|x|^2 / 2] and q~ = [q, 1] have
the greatest inner product where q and x are nearest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_retrieval.errors import MegatronRetrievalError
from megatron_retrieval.index.api import VectorSource
from megatron_retrieval.index.exact.pair_scores import sum_by_halves

#: what the columns that add up to -|x|^2 / 2 are multiplied with: a number in 16 bits holds 8 or 11 of its digits, the
#: rest of it again so many; the last rest would be too small for float16 as it is
_FACTORS = (1.0, 1.0, 2.0**-12)
#: dimensions are multiples of this, as matrix units prefer them
_WIDTH_STEP = 8


class SquaredDistanceVectors:
    """The rows of a source with what makes inner products with `distance_queries` order rows by distance; a
    `VectorSource`, exact to float32 in whatever type the rows are kept.

    The norms are those of the stored vectors, which may have been rounded; each is computed once.
    """

    def __init__(self, source: VectorSource) -> None:
        self.source = source
        self._norms: Tensor | None = None  # [N, 3] in the type of the vectors
        self._is_known = torch.zeros(len(source), dtype=torch.bool)

    @property
    def dimension(self) -> int:
        return _width(self.source.dimension)

    def __len__(self) -> int:
        return len(self.source)

    def vectors(self, start: int, stop: int) -> Tensor:
        return self._extended(self.source.vectors(start, stop), slice(start, stop))

    def read(self, start: int, stop: int) -> Tensor:
        return self._extended(self.source.read(start, stop), slice(start, stop))

    def vectors_of(self, rows: Tensor) -> Tensor:
        return self._extended(self.source.vectors_of(rows), rows)

    def _extended(self, vectors: Tensor, rows: Tensor | slice) -> Tensor:
        """[n, D] -> [n, dimension].

        Raises:
            MegatronRetrievalError: a norm does not fit the type.
        """
        if self._norms is None:
            self._norms = vectors.new_zeros(len(self), len(_FACTORS))
            self._is_known = self._is_known.to(vectors.device)
        if not bool(self._is_known[rows].all()):
            self._norms[rows] = _norm_columns(vectors)
            self._is_known[rows] = True
        width = vectors.size(1)
        extended = vectors.new_zeros(len(vectors), self.dimension)
        extended[:, :width] = vectors
        extended[:, width : width + len(_FACTORS)] = self._norms[rows]
        return extended


def _norm_columns(vectors: Tensor) -> Tensor:
    """[n, D] -> [n, 3] in the type of the vectors: what adds up to -|x|^2 / 2, times the factors.

    Raises:
        MegatronRetrievalError: a norm does not fit the type.
    """
    rest = vectors.double().square_().sum(1).mul_(-0.5)
    if len(rest) and float(rest.min()) < -torch.finfo(vectors.dtype).max:
        name = str(vectors.dtype).removeprefix("torch.")
        raise MegatronRetrievalError(
            f"Vectors are so long that their squared lengths do not fit into {name}; embed with --embedding-dtype "
            "bfloat16, or with an encoder that normalises."
        )
    columns = []
    for factor in _FACTORS:
        columns.append((rest / factor).to(vectors.dtype))
        rest = rest - columns[-1].double() * factor
    return torch.stack(columns, 1)


def distance_queries(queries: Tensor) -> Tensor:
    """[B, D] -> [B, dimension] float32, to be searched for in `SquaredDistanceVectors`."""
    extended = queries.new_zeros(len(queries), _width(queries.size(1)), dtype=torch.float32)
    extended[:, : queries.size(1)] = queries
    extended[:, queries.size(1) : queries.size(1) + len(_FACTORS)] = torch.tensor(_FACTORS)
    return extended


def squared_distances(queries: Tensor, vectors: Tensor) -> Tensor:
    """[B, D] and [B, K, D] -> [B, K] float64, the same bits in any batch; equal vectors are at distance 0."""
    differences = (queries[:, None].double() - vectors).flatten(0, 1).square_()
    return sum_by_halves(differences).view(vectors.shape[:2])


def _width(dimension: int) -> int:
    return -(-(dimension + len(_FACTORS)) // _WIDTH_STEP) * _WIDTH_STEP
