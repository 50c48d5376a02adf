"""Finds answers in texts, both as token ids: distant supervision for extractive readers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from megatron_retrieval.tokenizers.vocabulary import Vocabulary


class AnswerFinder:
    """Finds whole words only: an occurrence ends where a word ends, and begins where one begins as answers do.

    Args:
        vocabulary: of texts and answers.
        dtype: of the ids in texts.
    """

    def __init__(self, vocabulary: Vocabulary, dtype: np.dtype[np.generic]) -> None:
        self._vocabulary, self._dtype = vocabulary, dtype
        self._continues_word, self._closes_word = vocabulary.continues_word(), vocabulary.closes_word()

    def needles(self, answer: Sequence[int]) -> list[bytes]:
        """An answer as `spans` takes it: its ids, and those that it has behind a space where they are others."""
        forms = [answer]
        if not self._vocabulary.is_separable:
            (text,) = self._vocabulary.decode([answer])
            forms += self._vocabulary.encode([f" {text.lstrip()}"])
        return [np.asarray(form, self._dtype).tobytes() for form in forms]

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
            if self._begins_word(text, start) and self._is_edge(text, start + len(answer))
        }
        return sorted(found)

    def _begins_word(self, text: bytes, start: int) -> bool:
        # where ids do not depend on what stands before, those of the answer say so
        return self._vocabulary.is_separable or self._is_edge(text, start)

    def _is_edge(self, text: bytes, place: int) -> bool:
        """No word goes on from the token before this byte to the one at it."""
        width = self._dtype.itemsize
        if place in (0, len(text)):
            return True
        before, behind = np.frombuffer(text[place - width : place + width], self._dtype).tolist()
        return bool(self._closes_word[before]) or not self._continues_word[behind]


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
