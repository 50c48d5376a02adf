"""Between corpus and index: passages to stored vectors, questions to passages."""

from megatron_retrieval.retrieval.batches import EncodeConfig, EncodePassagesConfig
from megatron_retrieval.retrieval.embedder import embed_evidence, embed_in_memory, embed_part
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions
from megatron_retrieval.retrieval.retriever import Retriever, encode_questions, search_overlap

__all__ = [
    "EncodeConfig",
    "EncodePassagesConfig",
    "IndexRequest",
    "IndexVersions",
    "Retriever",
    "embed_evidence",
    "embed_in_memory",
    "embed_part",
    "encode_questions",
    "search_overlap",
]
