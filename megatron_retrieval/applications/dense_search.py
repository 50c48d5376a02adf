"""A question encoder over an index of passage vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_retrieval.checkpoint.kinds.dual_encoder import LoadedDualEncoder
from megatron_retrieval.evaluation.retriever_task import Found, retrieve_share
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.retriever import Retriever, encode_questions, tokenize_questions
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.search import SearchResult


@dataclass(frozen=True)
class DenseSearch:
    """A question encoder with the index of passage vectors."""

    encoder: LoadedDualEncoder
    embeddings: EmbeddingStore
    tokenizer: Vocabulary
    retriever: Retriever
    device: torch.device

    def search(self, questions: Sequence[str], k: int) -> SearchResult:
        """The k best rows for each question, on the CPU; a collective where several ranks hold the index."""
        encode, text_format = self.encoder.model.encode_queries, self.encoder.description.layout
        vectors = encode_questions(questions, self.tokenizer, text_format, encode, device=self.device)
        result = self.retriever.retrieve(vectors.to(self.device), k)
        return SearchResult(scores=result.scores.cpu(), rows=result.rows.cpu())

    def share(self, questions: Sequence[str], topology: ProcessTopology, *, depth: int, micro_batch_size: int) -> Found:
        """See `retrieve_share`."""
        tokens = tokenize_questions(questions, self.tokenizer, self.encoder.description.layout)
        encode = self.encoder.model.encode_queries
        return retrieve_share(tokens, encode, self.retriever, topology, depth=depth, micro_batch_size=micro_batch_size)
