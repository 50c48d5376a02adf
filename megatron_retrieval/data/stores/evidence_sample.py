"""An evenly spaced sample of the evidence, for evaluation during training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.types.tokens import TokenBatch


def spread_rows(num_rows: int, wanted: int | None) -> Rows:
    """`wanted` of the rows 0 to `num_rows` - 1 evenly spaced from the first; all rows where there are no more."""
    if wanted is None or wanted >= num_rows:
        return np.arange(num_rows)
    return np.arange(wanted) * num_rows // wanted


class EvidenceSample:
    """Evenly spaced passages of the evidence as rows 0 to n - 1; the same in every run."""

    def __init__(self, evidence: EvidenceStore, max_passages: int | None) -> None:
        self._evidence = evidence
        self._rows = spread_rows(len(evidence), max_passages)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fingerprint(self) -> str:
        """Names the passages: the evidence, and how many of them."""
        return f"{self._evidence.fingerprint}/{len(self)}"

    def tokens(self, rows: Sequence[int] | Rows, text_format: TextFormatConfig) -> TokenBatch:
        """The passages `rows` of the sample laid out for the encoder."""
        return self._evidence.tokens(self._rows[np.asarray(rows, np.int64)], text_format)

    def passages(self, rows: Sequence[int] | Rows) -> list[Passage]:
        """The passages `rows` of the sample."""
        return self._evidence.passages(self._rows[np.asarray(rows, np.int64)])

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """The row of each external id, -1 where the sample has no such passage."""
        wanted = self._evidence.rows_of(ids)
        places = np.searchsorted(self._rows, wanted).clip(max=len(self._rows) - 1)
        return np.where(self._rows[places] == wanted, places, -1)
