"""Sequences of chunks as texts that are read each for itself, with what was retrieved for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.data.examples.batches import BatchSource, Share
from megatron_retrieval.types.neighbours import ChunkedTexts, Neighbours
from megatron_retrieval.types.retro import RetroBatch
from megatron_retrieval.types.tokens import WIDTH_STEP, TokenBatch
from megatron_retrieval.utils.seeds import generator

NOT_PREDICTED = -1


class RetroTexts:
    """A BatchSource of texts, out of one of sequences.

    Args:
        drop: share of the chunks that get no neighbours, drawn anew in every epoch, so that the model learns to do
            without.
        seed: of the run.
    """

    def __init__(self, sequences: BatchSource[RetroBatch], *, drop: float, seed: int) -> None:
        self._sequences, self._drop, self._seed = sequences, drop, seed

    def __len__(self) -> int:
        return len(self._sequences)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> ChunkedTexts:
        """See BatchSource."""
        sequences = self._sequences.batch(indices, epoch, first_position, dp_rank, dp_size)
        # full chunks behind which their document goes on
        retrieves = sequences.labels.unflatten(1, (sequences.documents.size(1), -1))[..., -1] != NOT_PREDICTED
        if self._drop:
            first = first_position + Share.of(len(indices), dp_rank, dp_size).first
            drawn = [
                generator(self._seed, "dropped neighbours", epoch, first + row).random(retrieves.size(1))
                for row in range(len(retrieves))
            ]
            retrieves &= torch.from_numpy(np.stack(drawn)) >= self._drop
        return texts_of(sequences, retrieves)


def texts_of(batch: RetroBatch, retrieves: Tensor) -> ChunkedTexts:
    """The runs of chunks of one document in each sequence, up to their last token that another is predicted from.

    Args:
        retrieves: [B, l] bool, the chunks whose neighbours are read.
    """
    number, first = _runs(batch.documents)
    length = batch.tokens.size(1) // batch.documents.size(1)
    # where the last label of each run stands, and with it the run's length
    places = (batch.labels.flatten() >= 0).nonzero()[:, 0]
    owners = number.flatten()[places // length]
    ends = places - first[owners] * length + 1
    lengths = torch.zeros(len(first), dtype=torch.int64).scatter_reduce(0, owners, ends, "amax")
    kept = (lengths > 0).nonzero()[:, 0]
    starts, lengths = first[kept] * length, lengths[kept]
    width = -(-int(lengths.max()) // WIDTH_STEP) * WIDTH_STEP if len(kept) else 0
    columns = torch.arange(width)
    is_real = columns < lengths[:, None]
    sources = (starts[:, None] + columns).where(is_real, 0)
    ids, labels = (values.flatten()[sources] for values in (batch.tokens, batch.labels))
    tokens = TokenBatch(ids.where(is_real, 0), lengths)
    text_of = torch.full((len(first),), -1).index_copy(0, kept, torch.arange(len(kept)))
    return ChunkedTexts(
        tokens, labels.where(is_real, NOT_PREDICTED), _neighbours(batch, retrieves, number, first, text_of)
    )


def _neighbours(batch: RetroBatch, retrieves: Tensor, number: Tensor, first: Tensor, text_of: Tensor) -> Neighbours:
    """Of the chunks that retrieve, by the texts that became of their runs."""
    chunks = (retrieves & (number >= 0)).flatten().nonzero()[:, 0]
    runs = number.flatten()[chunks]
    return Neighbours(
        batch.neighbor_tokens.flatten(0, 1)[chunks],
        batch.neighbor_mask.flatten(0, 1)[chunks].sum(2),
        text_of[runs],
        (chunks - first[runs]) * (batch.tokens.size(1) // batch.documents.size(1)),
    )


def _runs(documents: Tensor) -> tuple[Tensor, Tensor]:
    """[B, l] documents, -1 for none -> [B, l] the number of each chunk's run, -1 for none; [n] the first chunk of each
    run, counted over all sequences."""
    before = torch.cat([torch.full_like(documents[:, :1], -1), documents[:, :-1]], 1)
    begins = (documents >= 0) & (documents != before)
    number = (begins.flatten().cumsum(0) - 1).view_as(documents).masked_fill(documents < 0, -1)
    return number, begins.flatten().nonzero()[:, 0]
