"""Between corpus and index: passages to stored vectors, questions to passages."""

from megatron_retrieval.retrieval.batches import EncodeConfig
from megatron_retrieval.retrieval.embedder import embed_evidence, embed_in_memory
from megatron_retrieval.retrieval.retriever import Retriever, encode_questions

__all__ = ["EncodeConfig", "Retriever", "embed_evidence", "embed_in_memory", "encode_questions"]
