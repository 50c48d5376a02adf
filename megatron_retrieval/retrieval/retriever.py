"""Questions to the passages nearest to them; never differentiates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.data.formatting import TextFormatConfig, format_questions
from megatron_retrieval.data.ragged import Ragged
from megatron_retrieval.index import SearchIndex
from megatron_retrieval.retrieval.batches import Encode, encode_batches, length_sorted_batches, require_evaluation_mode
from megatron_retrieval.tokenizers import WordPieceTokenizer
from megatron_retrieval.types import SearchResult, TokenBatch


class Retriever:
    """Finds passages for query vectors in an index."""

    def __init__(self, index: SearchIndex) -> None:
        self.index = index

    @torch.no_grad()
    def retrieve(self, query_vectors: Tensor, k: int, exclude_rows: Tensor | None = None) -> SearchResult:
        """The k best rows for each of [B, D] query vectors; no gradient flows through the result.

        Args:
            exclude_rows: [B, E] int64 rows that must not be returned for that query (for instance the passage that
                the question was made from); -1 stands for none.
        """
        return self.index.search(query_vectors.detach(), k, exclude_rows)


def tokenize_questions(
    questions: Sequence[str], tokenizer: WordPieceTokenizer, text_format: TextFormatConfig
) -> TokenBatch:
    """Questions laid out as in training."""
    ids = Ragged.from_sequences(tokenizer.encode(questions), np.int64)
    return format_questions(ids, tokenizer.special, text_format.query_seq_length)


def encode_questions(
    questions: Sequence[str],
    tokenizer: WordPieceTokenizer,
    text_format: TextFormatConfig,
    encode: Encode,
    *,
    device: torch.device,
    micro_batch_size: int = 128,
) -> Tensor:
    """Question strings to vectors [n, D] float32 on the CPU, in the order of the questions."""
    require_evaluation_mode(encode)
    tokens = tokenize_questions(questions, tokenizer, text_format)
    batches = length_sorted_batches(tokens.lengths, micro_batch_size)
    vectors = encode_batches(tokens, batches, encode, device)
    restored = torch.empty_like(vectors)
    restored[torch.cat(batches)] = vectors
    return restored
