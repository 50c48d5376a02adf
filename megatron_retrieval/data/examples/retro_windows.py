"""Whole documents to be scored by a language model: windows of them, in which every token but the first is predicted
once, with the longest context that the windows give (arXiv 2112.04426, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.types.neighbours import ChunkedTexts, Neighbours
from megatron_retrieval.types.tokens import WIDTH_STEP, TokenBatch


class Window(NamedTuple):
    """A part of a document.

    Attributes:
        start: its first token, at the beginning of a chunk.
        first: the first token that is predicted.
        last: the last one; all before it are read.
        place: of the first predicted token among those of all documents.
    """

    document: int
    start: int
    first: int
    last: int
    place: int


class RetroWindows:
    """The windows of documents.

    Args:
        seq_length: longest window, a multiple of the chunk length.
        stride: from window to window, likewise.

    Attributes:
        num_labels: tokens that are predicted.
        rows: [num_labels] the chunk of the store that each of them is in.
    """

    def __init__(self, chunks: ChunkStore, documents: Rows, seq_length: int, stride: int) -> None:
        self._chunks, self._windows = chunks, list[Window]()
        rows, place = [], 0
        for document in documents.tolist():
            num_tokens = len(chunks.tokens[document])
            for window in cut(document, num_tokens, seq_length, stride, place):
                self._windows.append(window)
            num_labels = max(num_tokens - 1, 0)
            first_row = int(chunks.documents[document])
            rows.append(first_row + np.arange(1, num_labels + 1) // chunks.chunk_length)
            place += num_labels
        self.num_labels, self.rows = place, np.concatenate(rows) if rows else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def lengths(self) -> torch.Tensor:
        """[len] tokens that are read of each."""
        return torch.tensor([window.last - window.start for window in self._windows], dtype=torch.int64)

    def retrieving_rows(self) -> Rows:
        """The chunks that neighbours are read for, ascending."""
        return np.unique(np.concatenate([self._retrieving([window])[0] for window in self._windows]))

    def texts(self, index: Rows) -> tuple[ChunkedTexts, Rows, Rows]:
        """Some windows.

        Returns:
            The texts without neighbours; [M] the place of each label, in the texts' order; [C] the rows of chunks that
            retrieve, to which `neighbours` of the texts belong.
        """
        windows = [self._windows[number] for number in index]
        width = -(-max(window.last - window.start for window in windows) // WIDTH_STEP) * WIDTH_STEP
        ids, labels = np.zeros((len(windows), width), np.int64), np.full((len(windows), width), -1, np.int64)
        places = []
        for row, (document, start, first, last, place) in enumerate(windows):
            tokens = self._chunks.tokens[document]
            ids[row, : last - start] = tokens[start:last]
            labels[row, first - 1 - start : last - start] = tokens[first : last + 1]
            places.append(place + np.arange(last + 1 - first))
        lengths = torch.tensor([window.last - window.start for window in windows])
        chunks, neighbours = self._retrieving(windows)
        tokens_of = TokenBatch(torch.from_numpy(ids), lengths)
        return ChunkedTexts(tokens_of, torch.from_numpy(labels), neighbours), np.concatenate(places), chunks

    def _retrieving(self, windows: list[Window]) -> tuple[Rows, Neighbours]:
        """The full chunks behind which the document goes on: their rows, and where they stand."""
        length = self._chunks.chunk_length
        counts = [(window.last - window.start) // length for window in windows]
        first_rows = [int(self._chunks.documents[window.document]) + window.start // length for window in windows]
        rows = np.concatenate([first + np.arange(n) for first, n in zip(first_rows, counts, strict=True)])
        texts = torch.arange(len(windows)).repeat_interleave(torch.tensor(counts))
        starts = torch.cat([torch.arange(n) * length for n in counts])
        nothing = torch.zeros(len(starts), 0, dtype=torch.int64)
        return rows.astype(np.int64), Neighbours(nothing[:, :, None], nothing, texts, starts)


def cut(document: int, num_tokens: int, seq_length: int, stride: int, place: int) -> Iterator[Window]:
    """The windows of one document; none where it has one token or none.

    Args:
        place: of its first predicted token.
    """
    first, start = 1, 0
    while first < num_tokens:
        last = min(start + seq_length, num_tokens - 1)
        yield Window(document, start, first, last, place + first - 1)
        first, start = last + 1, start + stride
