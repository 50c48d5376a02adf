"""Sequences of a language model, with what it retrieves for each of their chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.types.tokens import to_device


@dataclass(frozen=True)
class RetroBatch:
    """n sequences of l chunks of m tokens (T = l * m), with k neighbours of r = 2 * m tokens for every chunk; on one
    rank its share of a global batch (Borgeaud et al. 2022, RETRO, arXiv 2112.04426, section 2.2).

    A chunk retrieves where it is full and its document goes on behind it: only then can a later token read what was
    found. The mask of its neighbours says so; nothing else is needed.

    Attributes:
        tokens: [n, T] int64; 0 behind the end of a document, up to the next chunk, and in fillers.
        labels: [n, T] int64, the token after each one in the same document (behind the last place the one after the
            sequence); -1 where there is none.
        documents: [n, l] int64, the document that each chunk is of, -1 for none. Attention stays within a document.
        neighbor_tokens: [n, l, k, r] int64; a neighbour is a chunk (places 0 to m - 1) and the one after it in its
            document (m to r - 1).
        neighbor_mask: [n, l, k, r] bool, True at real tokens; none where a chunk has fewer neighbours, or retrieves
            nothing.
        chunk_bytes: [n, l] int64, bytes of text that each chunk stands for.
        first_bytes: [n, l] int64, those of them that no label predicts, as they are of a document's first token.
        overlap: [n, l, k] int64, tokens in a row that the chunk itself shares with each of its neighbours.
    """

    tokens: Tensor
    labels: Tensor
    documents: Tensor
    neighbor_tokens: Tensor
    neighbor_mask: Tensor
    chunk_bytes: Tensor
    first_bytes: Tensor
    overlap: Tensor

    def __len__(self) -> int:
        return self.tokens.size(0)

    def rows(self, index: Tensor) -> RetroBatch:
        """The sequences `index` [m], all of it on the CPU."""
        return RetroBatch(**{name: values[index] for name, values in vars(self).items()})

    def to(self, device: torch.device) -> RetroBatch:
        return RetroBatch(**{name: to_device(values, device) for name, values in vars(self).items()})
