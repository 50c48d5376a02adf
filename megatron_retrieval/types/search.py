"""What a search returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SearchResult:
    """The k best rows for each query.

    Attributes:
        scores: [B, k] float32, descending.
        rows: [B, k] int64 rows of the evidence; equal scores are ordered by row.
    """

    scores: Tensor
    rows: Tensor
