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
        starts: [C] int64, the position of the chunk's first token in its text; below 0 where the text begins inside the
            chunk, as if it were padded on the left. The text has the chunk's last token.
    """

    ids: Tensor
    lengths: Tensor
    texts: Tensor
    starts: Tensor

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, index: Tensor) -> Neighbours:
        """Those of the chunks `index` [n], or of those where `index` [C] is True."""
        return Neighbours(self.ids[index], self.lengths[index], self.texts[index], self.starts[index])

    def of_texts(self, index: Tensor, num_texts: int) -> Neighbours:
        """Those of the texts `index` [n], out of `num_texts`, which become the texts 0 to n - 1."""
        place = torch.full((num_texts,), -1)
        place[index] = torch.arange(len(index))
        own = self.rows(place[self.texts] >= 0)
        return replace(own, texts=place[own.texts])


@dataclass(frozen=True)
class NeighbouredTexts(TokenBatch):
    """Texts that go with what was retrieved for chunks of them."""

    neighbours: Neighbours

    def rows(self, index: Tensor) -> NeighbouredTexts:
        """See TokenBatch; each row once."""
        tokens = super().rows(index)
        return replace(
            self, ids=tokens.ids, lengths=tokens.lengths, neighbours=self.neighbours.of_texts(index, len(self))
        )

    def in_rows(self, places: Tensor, ids: Tensor, lengths: Tensor) -> NeighbouredTexts:
        """See TokenBatch."""
        neighbours = replace(self.neighbours, texts=places[self.neighbours.texts])
        return NeighbouredTexts(ids, lengths, neighbours)


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
