"""Stored passage vectors and the search over them."""

from megatron_retrieval.index.api import SearchIndex, VectorSource
from megatron_retrieval.index.embedding_store import EmbeddingStore, StorageDtype, StoreIdentity
from megatron_retrieval.index.embedding_writer import EmbeddingWriter
from megatron_retrieval.index.flat import FlatIndex
from megatron_retrieval.index.memory import MemoryWriter
from megatron_retrieval.index.placement import Placement
from megatron_retrieval.index.sharded import ShardedIndex

__all__ = [
    "EmbeddingStore",
    "EmbeddingWriter",
    "FlatIndex",
    "MemoryWriter",
    "Placement",
    "SearchIndex",
    "ShardedIndex",
    "StorageDtype",
    "StoreIdentity",
    "VectorSource",
]
