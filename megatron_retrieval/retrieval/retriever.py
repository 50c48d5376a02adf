"""Questions to the passages nearest to them; never differentiates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.data.layouts.sequences import TextFormatConfig, lay_out_questions
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.index.api import SearchIndex
from megatron_retrieval.parallel.collectives import all_reduce_sum
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import Encode, encode_sequences, require_evaluation_mode
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.search import SearchResult
from megatron_retrieval.types.tokens import TokenBatch


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


def tokenize_questions(questions: Sequence[str], tokenizer: Vocabulary, text_format: TextFormatConfig) -> TokenBatch:
    """Questions laid out as in training."""
    ids = Ragged.from_sequences(tokenizer.encode(questions), np.int64)
    return lay_out_questions(ids, tokenizer, text_format)


def encode_questions(
    questions: Sequence[str],
    tokenizer: Vocabulary,
    text_format: TextFormatConfig,
    encode: Encode,
    *,
    device: torch.device,
    micro_batch_size: int = 128,
) -> Tensor:
    """Question strings to vectors [n, D] float32 on the CPU, in the order of the questions."""
    require_evaluation_mode(encode)
    tokens = tokenize_questions(questions, tokenizer, text_format)
    return encode_sequences(tokens, encode, micro_batch_size, device)


def search_overlap(
    before: SearchIndex, after: SearchIndex, queries: Tensor | None, k: int, topology: ProcessTopology
) -> dict[str, float]:
    """Of the k passages that one index finds, the share that another finds too, over the queries of all ranks; a
    collective over them.

    Args:
        queries: [n, D] of this rank; None: none.

    Returns:
        The share as `index_overlap@<k>`, k being at most the number of rows; nothing where no rank has a query.
    """
    k = min(k, after.num_rows)
    if queries is None:
        queries = torch.empty(0, after.dimension, device=topology.device)
    old, new = (index.search(queries, k).rows for index in (before, after))
    shared = (old[:, :, None] == new[:, None, :]).sum()
    counts = torch.stack([shared, shared.new_tensor(old.numel())]).to(topology.device)
    num_shared, num_found = all_reduce_sum(counts, topology.world_group).tolist()
    return {f"index_overlap@{k}": num_shared / num_found} if num_found else {}
