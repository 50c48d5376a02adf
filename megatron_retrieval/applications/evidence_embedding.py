"""Encode every passage of the evidence with a checkpoint's passage tower; run again to continue after a stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_retrieval.checkpoint.kinds.dual_encoder import LoadedDualEncoder, load_encoder, load_encoder_for
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.marks import formerly
from megatron_retrieval.config.parser import write_config
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.store.embedding_store import StorageDtype
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.retrieval.chunk_passages import ChunkPassages
from megatron_retrieval.retrieval.embedder import embed_evidence
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.retrieval.encode_batches import EncodePassagesConfig
from megatron_retrieval.training.run_record import RunRecord
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.manifest import MANIFEST


@dataclass(kw_only=True, frozen=True)
class EmbedEvidenceConfig(Checked):
    """Encode the evidence. Under torchrun the copies of the model share the work."""

    evidence: Path | None = None
    """Folder of the evidence (build evidence)."""
    chunks: Path | None = None
    """Folder of chunks (build chunks) to embed in place of evidence."""
    retriever: Path = field(metadata=formerly("load"))
    """Checkpoint of the dual encoder."""
    output: Path
    """Folder of the embeddings to write; an unfinished one is continued."""
    embedding_dtype: StorageDtype = "float16"
    """Type in which vectors are stored; scores are computed from them in float32."""
    embedding_size: PositiveInt | None = None
    """Keep the first numbers of every vector only, for an encoder that was trained for it (--matryoshka-dims); whatever
    searches these embeddings cuts the vectors of questions alike. Default: all."""
    rows_per_shard: int | None = None
    """Passages per file, the unit of work; default: a 64th of the evidence, from 512 to 65,536."""
    encode: EncodePassagesConfig = field(default_factory=EncodePassagesConfig)
    """How the encoder is run."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.evidence is None) == (self.chunks is None):
            raise ConfigError("give either --evidence (passages) or --chunks (of a language model's text).")


def _open(
    config: EmbedEvidenceConfig, topology: ProcessTopology
) -> tuple[EvidenceStore | ChunkPassages, LoadedDualEncoder]:
    """What is embedded, and its encoder."""
    dtype = config.encode.on(topology.device)
    if config.evidence is not None:
        evidence = EvidenceStore(config.evidence)
        return evidence, load_encoder_for(evidence, config.retriever, topology, dtype)
    assert config.chunks is not None
    chunks, encoder = ChunkStore(config.chunks), load_encoder(config.retriever, topology, dtype)
    return ChunkPassages(chunks, encoder.description.vocabulary()), encoder


def main(config: EmbedEvidenceConfig, topology: ProcessTopology) -> None:
    record = RunRecord(config, topology.world_size)
    was_complete = (config.output / MANIFEST).exists()
    evidence, encoder = _open(config, topology)
    encoder.model.cut(config.embedding_size)
    job = EmbeddingJob(
        evidence=evidence,
        encode=encoder.model.encode_passages,
        text_format=encoder.description.layout,
        encoder_fingerprint=encoder.description.fingerprint,
        embedding_dtype=config.embedding_dtype,
        micro_batch_size=config.encode.micro_batch_size,
        embedding_size=config.embedding_size or 0,
    )
    store = embed_evidence(job, config.output, topology, rows_per_shard=config.rows_per_shard)
    if topology.is_main and not was_complete:  # a second call must not replace the record of the work
        write_config(config, config.output / "config.yaml")
        record.write(config.output, num_passages=len(store), precision=store.manifest.identity.precision)
    get_logger().info(
        "%s passages, %d dimensions, encoded in %s, in %s",
        f"{len(store):,}",
        store.dimension,
        store.manifest.identity.precision,
        config.output,
    )
