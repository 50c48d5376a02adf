"""Passages as token ids alone, each distinct one once, collected from files too large to keep."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import numpy as np

from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.types.questions import Passage

Encode = Callable[[Sequence[str]], list[list[int]]]


class RaggedBuilder:
    """Sequences added one after another, in memory of their own size and no more.

    Args:
        dtype: an integer type of NumPy.
    """

    def __init__(self, dtype: type[np.generic]) -> None:
        self.dtype = np.dtype(dtype)
        self._values, self._offsets = array(self.dtype.char), array("q", [0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> bytes:
        """The bytes of a sequence, to search in."""
        return self._values[self._offsets[row] : self._offsets[row + 1]].tobytes()

    def length(self, row: int) -> int:
        """Of a sequence."""
        return self._offsets[row + 1] - self._offsets[row]

    def append(self, sequence: Iterable[int]) -> None:
        self._values.extend(sequence)
        self._offsets.append(len(self._values))

    def finish(self) -> Ragged:
        """All sequences; the builder takes no more."""
        return Ragged(np.frombuffer(self._values, self.dtype), np.frombuffer(self._offsets, np.int64))


class PassageTokens:
    """Numbers passages by title and text, and keeps the token ids of both.

    Args:
        encode: texts to token ids.
        dtype: holds every id.
    """

    def __init__(self, encode: Encode, dtype: type[np.generic]) -> None:
        self._encode = encode
        # 128 bits of a hash in place of the text: for millions of passages the texts are what does not fit
        self._numbers: dict[bytes, int] = {}
        self.titles, self.texts = RaggedBuilder(dtype), RaggedBuilder(dtype)

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, passages: Sequence[Passage]) -> list[int]:
        """The number of each passage; those that are new are tokenized together."""
        numbers: list[int] = []
        new: list[Passage] = []
        for passage in passages:
            number = self._numbers.setdefault(_key(passage), len(self._numbers))
            if number == len(self.texts) + len(new):
                new.append(passage)
            numbers.append(number)
        fields = ((self.titles, [passage.title for passage in new]), (self.texts, [passage.text for passage in new]))
        for column, strings in fields:
            for ids in self._encode(strings):
                column.append(ids)
        return numbers


def _key(passage: Passage) -> bytes:
    title = passage.title.encode()
    return blake2b(len(title).to_bytes(8, "little") + title + passage.text.encode(), digest_size=16).digest()
