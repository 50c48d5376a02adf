"""Finds answers in texts, both as token ids: distant supervision for extractive readers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


class AnswerFinder:
    """Finds whole words only: an occurrence ends where a word ends, and begins where one begins as answers do.

    Args:
        continues_word: [V] bool, tokens that continue the word of the token before them.
        dtype: of the ids in texts.
    """

    def __init__(self, continues_word: NDArray[np.bool_], dtype: np.dtype[np.generic]) -> None:
        self._continues_word, self._dtype = continues_word, dtype

    def needle(self, answer: ArrayLike) -> bytes:
        """An answer as `spans` takes it."""
        return np.asarray(answer, self._dtype).tobytes()

    def spans(self, text: bytes, answers: Sequence[bytes]) -> list[tuple[int, int]]:
        """(first, last) token of every occurrence of every answer, in order, each once.

        Args:
            text: the bytes of the text's ids; searching them is far quicker than comparing arrays.
            answers: needles, none of them empty.
        """
        width = self._dtype.itemsize
        found = {
            (start // width, (start + len(answer)) // width - 1)
            for answer in answers
            for start in _places(text, answer, width)
            if self._ends_word(text, start + len(answer))
        }
        return sorted(found)

    def _ends_word(self, text: bytes, stop: int) -> bool:
        following = np.frombuffer(text[stop : stop + self._dtype.itemsize], self._dtype)
        return not len(following) or not self._continues_word[int(following[0])]


def span_columns(spans: Sequence[ArrayLike], text_starts: Sequence[int]) -> Tensor:
    """[n, A, 2] int64 columns of occurrences in sequences whose texts begin at the n columns `text_starts`.

    Args:
        spans: (first, last) token of each occurrence in a text, for each sequence in turn; the last ones may have none.

    Returns:
        -1 where a sequence has fewer than A.
    """
    found = [np.asarray(own, np.int64).reshape(-1, 2) for own in spans]
    columns = np.full((len(text_starts), max(map(len, found), default=1), 2), -1, np.int64)
    for row, own in enumerate(found):
        columns[row, : len(own)] = own + text_starts[row]
    return torch.from_numpy(columns)


def _places(text: bytes, wanted: bytes, width: int) -> Iterator[int]:
    """Byte positions of `wanted` in `text`, at whole items only."""
    place = text.find(wanted)
    while place >= 0:
        if place % width == 0:
            yield place
        place = text.find(wanted, place + 1)
