"""Evidence embedded by a checkpoint, as the program does it, in float32 on every machine."""

from __future__ import annotations

from pathlib import Path

from megatron_retrieval.applications import evidence_embedding
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import EncodePassagesConfig


def embed(topology: ProcessTopology, evidence: Path, retriever: Path, output: Path) -> None:
    """Write the embeddings of all passages; all ranks call it."""
    config = evidence_embedding.EmbedEvidenceConfig(
        evidence=evidence,
        retriever=retriever,
        output=output,
        embedding_dtype="float32",
        encode=EncodePassagesConfig(dtype="fp32"),
    )
    evidence_embedding.main(config, topology)
