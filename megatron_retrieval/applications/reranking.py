"""Opens what reorders the passages that a search finds."""

from __future__ import annotations

from collections.abc import Callable

from megatron_retrieval.checkpoint.kinds.cross_encoder import CROSS_ENCODER
from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER
from megatron_retrieval.checkpoint.kinds.late_interaction import LATE_INTERACTION
from megatron_retrieval.checkpoint.kinds.registry import describe
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.retrieval.passage_scorers import (
    CrossEncoderScorer,
    ExtractiveReaderScorer,
    LateInteractionScorer,
)
from megatron_retrieval.retrieval.reranker import PassageScorer, RerankConfig, Reranker

#: by the kind of the checkpoint
_SCORERS: dict[str, Callable[..., PassageScorer]] = {
    CROSS_ENCODER.name: CrossEncoderScorer,
    LATE_INTERACTION.name: LateInteractionScorer,
    EXTRACTIVE_READER.name: ExtractiveReaderScorer,
}


def open_reranker(config: RerankConfig, encode: EncodeConfig, topology: ProcessTopology) -> Reranker | None:
    """The reranker; None where none is asked for.

    Raises:
        CheckpointError: nothing there that scores passages.
    """
    if config.rerank is None:
        return None
    found = describe(config.rerank, _SCORERS)
    model = found.load(topology, encode.on(topology.device))
    scores = _SCORERS[found.kind.name](
        model, found.layout, found.vocabulary(), topology.device, encode.micro_batch_size
    )
    return Reranker(scores, config.rerank_topk, found.fingerprint, config.rerank_weight)
