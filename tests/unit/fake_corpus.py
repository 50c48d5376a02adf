"""A corpus in memory, of documents that are given by the lengths of their titles and sentences."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from megatron_retrieval.data.stores.ragged import Ragged, Rows, to_offsets
from megatron_retrieval.tokenizers.vocabulary import SpecialIds

Document = tuple[int, list[int]]
"""Length of the title, lengths of the sentences."""

CLS, SEP, TITLE, FIRST_TOKEN = 1, 2, 50, 100


@dataclass(frozen=True)
class FakeCorpus:
    """Token ids of the sentences count on from `FIRST_TOKEN`, so that each is told apart; titles repeat `TITLE`."""

    sentences: Ragged
    documents: Rows
    titles: Ragged
    special: SpecialIds
    vocabulary: Any = field(default_factory=lambda: SimpleNamespace(is_separable=True))

    @classmethod
    def of(cls, documents: list[Document]) -> FakeCorpus:
        offsets = to_offsets(np.array([length for _, lengths in documents for length in lengths], np.int64))
        titles = to_offsets(np.array([length for length, _ in documents], np.int64))
        return cls(
            Ragged(np.arange(FIRST_TOKEN, FIRST_TOKEN + offsets[-1]), offsets),
            to_offsets(np.array([len(lengths) for _, lengths in documents], np.int64)),
            Ragged(np.full(titles[-1], TITLE), titles),
            SpecialIds(begin=CLS, end=SEP, pad=0, mask=3),
        )
