"""Texts in chunks, and what was retrieved for these."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_retrieval.types.tokens import TokenBatch


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of C chunks of a batch of texts; all of it on the CPU.

    Attributes:
        ids: [C, k, r] int64, padding on the right, its value irrelevant.
        lengths: [C, k] int64, real tokens; 0 where there is no such neighbour.
        texts: [C] int64, the text that each chunk is of.
        chunks: [C] int64, the place of the chunk in its text, from 0; it is full.
    """

    ids: Tensor
    lengths: Tensor
    texts: Tensor
    chunks: Tensor

    def __len__(self) -> int:
        return len(self.chunks)

    def rows(self, index: Tensor) -> Neighbours:
        """Those of the chunks `index` [n], or of those where `index` [C] is True."""
        return Neighbours(self.ids[index], self.lengths[index], self.texts[index], self.chunks[index])

    def of_texts(self, index: Tensor, num_texts: int) -> Neighbours:
        """Those of the texts `index` [n], out of `num_texts`, which become the texts 0 to n - 1."""
        place = torch.full((num_texts,), -1)
        place[index] = torch.arange(len(index))
        own = self.rows(place[self.texts] >= 0)
        return replace(own, texts=place[own.texts])


@dataclass(frozen=True)
class ChunkedTexts:
    """n texts with the neighbours of their chunks; on one rank, its share of a global batch.

    Attributes:
        tokens: each text is a run of tokens of one document, and begins with a chunk of it.
        labels: [n, T] int64, at every place the token after it; -1 where none is to be predicted.
        neighbours: of the chunks that retrieve; all others have none.
    """

    tokens: TokenBatch
    labels: Tensor
    neighbours: Neighbours

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor) -> ChunkedTexts:
        """The texts `index` [m], cut like their tokens; all of it on the CPU."""
        tokens = self.tokens.rows(index)
        labels = self.labels[index, : tokens.ids.size(1)]
        return ChunkedTexts(tokens, labels, self.neighbours.of_texts(index, len(self)))
