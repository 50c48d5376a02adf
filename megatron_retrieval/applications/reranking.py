"""Opens the cross-encoder that reorders what a search finds."""

from __future__ import annotations

from megatron_retrieval.checkpoint.kinds.cross_encoder import CROSS_ENCODER
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.retrieval.reranker import RerankConfig, Reranker


def open_reranker(config: RerankConfig, encode: EncodeConfig, topology: ProcessTopology) -> Reranker | None:
    """The reranker; None where none is asked for.

    Raises:
        CheckpointError: no cross-encoder there.
    """
    if config.rerank is None:
        return None
    loaded = CROSS_ENCODER.load(config.rerank, topology, encode.on(topology.device))
    return Reranker(
        loaded.model,
        loaded.description.vocabulary(),
        loaded.description.layout,
        topology.device,
        depth=config.rerank_topk,
        micro_batch_size=encode.micro_batch_size,
        fingerprint=loaded.description.fingerprint,
    )
