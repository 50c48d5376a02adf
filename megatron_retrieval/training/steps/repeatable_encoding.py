"""Texts that are encoded twice with the same dropout, a micro-batch at a time (Gao et al. 2021, arXiv 2101.06983)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_retrieval.training.steps.step import distinct_texts
from megatron_retrieval.types.tokens import TokenBatch, by_length, in_given_order, to_device


class RepeatableEncoding:
    """Texts to encode, each different text once, in length-sorted chunks that can be encoded twice with the same
    dropout.

    Args:
        texts: on the CPU.
        start_chunk: starts the dropout of a chunk, given its number; None: there is no dropout.
        device: where texts are encoded.
    """

    def __init__(
        self,
        encode: Callable[[TokenBatch], Tensor],
        texts: TokenBatch,
        start_chunk: Callable[[int], None] | None,
        micro_batch_size: int,
        device: torch.device,
    ) -> None:
        self._encode, self._start_chunk, self._device = encode, start_chunk, device
        self._texts, place_of = distinct_texts(texts)
        self._place_of = to_device(place_of, device)
        self.chunks = by_length(self._texts.lengths, micro_batch_size)

    def _encode_chunk(self, number: int) -> Tensor:
        if self._start_chunk is not None:
            self._start_chunk(number)
        return self._encode(self._texts.rows(self.chunks[number]).to(self._device))

    def vectors(self) -> Tensor:
        """[n, D] vectors in the order of the texts."""
        vectors = torch.cat([self._encode_chunk(number) for number in range(len(self.chunks))])
        return in_given_order(vectors, self.chunks)[self._place_of]

    def backward(self, gradient: Tensor) -> None:
        """Carry the gradient [n, D] of the vectors into the weights, one chunk at a time; none of a frozen encoder."""
        total = gradient.new_zeros(len(self._texts), gradient.size(1)).index_add_(0, self._place_of, gradient)
        for number, chunk in enumerate(self.chunks):
            vectors = self._encode_chunk(number)
            if not vectors.requires_grad:
                return
            vectors.backward(total[to_device(chunk, self._device)])
