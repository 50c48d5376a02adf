"""Vectors of earlier stores for passages that have not changed: only new ones are encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.retrieval.embedding_job import TokenizedEvidence
from megatron_retrieval.types.tokens import TokenBatch

#: rows laid out at a time while earlier evidence is looked through
_BLOCK_ROWS = 4096


class KnownVectors(nn.Module):
    """Encodes passages as the model does, but takes the vectors of those that earlier evidence held as well.

    A vector depends on the tokens of the encoder's input alone, whatever the row and the id of the passage. Memory:
    about 200 bytes for each earlier passage.

    Args:
        model: in evaluation mode.
        text_format: its layout.
        earlier: evidence with its vectors by this very encoder.

    Attributes:
        num_encoded: passages that were new, so far.

    Raises:
        MismatchError: vectors are of another evidence.
    """

    def __init__(
        self,
        model: DualEncoder,
        text_format: TextFormatConfig,
        earlier: Sequence[tuple[TokenizedEvidence, EmbeddingStore]],
    ) -> None:
        super().__init__()
        self.model, self.num_encoded = model, 0
        self._stores = [store for _, store in earlier]
        self._known: dict[bytes, tuple[int, int]] = {}
        for number, (evidence, store) in enumerate(earlier):
            store.require(evidence_fingerprint=evidence.fingerprint)
            for start in range(0, len(evidence), _BLOCK_ROWS):
                rows = np.arange(start, min(start + _BLOCK_ROWS, len(evidence)))
                digests = _digests(evidence.tokens(rows, text_format))
                self._known |= {digest: (number, start + place) for place, digest in enumerate(digests)}
        self.train(model.training)

    def encode_passages(self, passages: TokenBatch) -> Tensor:
        """[P, T] -> [P, D] float32."""
        known = [self._known.get(digest) for digest in _digests(passages)]
        vectors = torch.empty(len(passages), self.model.dimension, device=passages.ids.device)
        for number, store in enumerate(self._stores):
            found = [(place, where[1]) for place, where in enumerate(known) if where and where[0] == number]
            if found:
                places, rows = torch.tensor(found).unbind(1)
                vectors[places] = store.vectors_of(rows).to(vectors)
        new = torch.tensor([place for place, where in enumerate(known) if where is None], dtype=torch.int64)
        if len(new):
            self.num_encoded += len(new)
            vectors[new] = self.model.encode_passages(passages.rows(new))
        return vectors


def _digests(tokens: TokenBatch) -> Iterator[bytes]:
    """A hash of each sequence."""
    for ids, length in zip(tokens.ids.cpu().numpy().astype("<i8", copy=False), tokens.lengths.tolist(), strict=True):
        yield hashlib.blake2b(ids[:length].tobytes(), digest_size=16).digest()
