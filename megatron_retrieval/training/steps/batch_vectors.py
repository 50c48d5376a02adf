"""Vectors of a batch of questions and passages: their prefixes, and where gradients end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def _prefix(vectors: Tensor, size: int, is_unit: bool) -> Tensor:
    return F.normalize(vectors[:, :size], dim=1) if is_unit else vectors[:, :size]


@dataclass(frozen=True)
class BatchVectors:
    """Vectors of a batch, or a guide's vectors of the same texts.

    Attributes:
        queries: [n, D], of this rank's questions.
        all_queries: [W * n, D], of all data-parallel ranks' questions; needed by guided losses alone.
        passages: [P, D], of all data-parallel ranks.
    """

    queries: Tensor
    all_queries: Tensor
    passages: Tensor

    def prefix(self, size: int, is_unit: bool) -> BatchVectors:
        """The first `size` numbers of every vector, scaled to length 1 again where vectors are."""
        return BatchVectors(*(_prefix(vectors, size, is_unit) for vectors in vars(self).values()))

    def leaves(self) -> BatchVectors:
        """The same numbers, where gradients end."""
        return BatchVectors(
            *(each.detach().requires_grad_() for each in (self.queries, self.all_queries, self.passages))
        )

    def backward(self, leaves: BatchVectors) -> None:
        """Carry on the gradients that ended in `leaves`."""
        pairs = zip(vars(self).values(), vars(leaves).values(), strict=True)
        taught = [(own, leaf.grad) for own, leaf in pairs if leaf.grad is not None]
        torch.autograd.backward([own for own, _ in taught], [gradient for _, gradient in taught])


@dataclass(frozen=True)
class Remembered:
    """Passages of batches before.

    Attributes:
        vectors: [M, D], without gradient.
        excluded: [n, M] bool, where one is no negative of one of this rank's questions.
    """

    vectors: Tensor
    excluded: Tensor

    def prefix(self, size: int, is_unit: bool) -> Remembered:
        """See `BatchVectors.prefix`."""
        return Remembered(_prefix(self.vectors, size, is_unit), self.excluded)
