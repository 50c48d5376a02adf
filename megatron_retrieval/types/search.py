"""What a search returns, and the rows that stand for no passage of the evidence."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

#: no passage: fewer were found than were asked for
FILLER_ROW = -1
#: the null passage, without title and text (Guu et al. 2020, REALM, arXiv 2002.08909, section 3.4): a candidate that no
#: index holds; who reads it reads the question alone
NULL_ROW = -2


@dataclass(frozen=True)
class SearchResult:
    """The k best rows for each query.

    Attributes:
        scores: [B, k] float32, descending.
        rows: [B, k] int64 rows of the evidence; equal scores are ordered by row.
    """

    scores: Tensor
    rows: Tensor
