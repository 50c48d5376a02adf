"""Builds what a retriever searches: evidence, embeddings and words in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_retrieval.applications.interface.opening import BM25, EMBEDDINGS, EVIDENCE
from megatron_retrieval.applications.search import SearchConfig
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, LoadedDualEncoder
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.index.bm25 import LexicalConfig, build_lexical_index
from megatron_retrieval.parallel.collectives import on_first_rank
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.embedder import embed_evidence
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class EncoderEvidenceConfig(EvidenceBuilderConfig):
    """Evidence in the vocabulary of an encoder, of whatever kind that is."""

    vocab_file: str = ""
    checkpoint: Path
    """Checkpoint of the dual encoder."""

    def open_vocabulary(self) -> Vocabulary:
        """See EvidenceBuilderConfig."""
        return DUAL_ENCODER.describe(self.checkpoint).vocabulary()


def build_index_folder(
    passages: Path,
    folder: Path,
    encoder: LoadedDualEncoder,
    encode: EncodeConfig,
    topology: ProcessTopology,
    *,
    bm25: bool,
) -> SearchConfig:
    """Write evidence, embeddings and, if wanted, words of a file of passages; all ranks call this together.

    The same call continues after a stop.

    Returns:
        How all of it is searched.

    Raises:
        DataError: the file is malformed, or `folder` holds evidence of others.
    """
    config = EncoderEvidenceConfig(
        input=(str(passages),), output=str(folder / EVIDENCE), checkpoint=encoder.description.folder
    )
    on_first_rank(lambda: build_evidence(config), topology.world_group)
    embed(folder / EVIDENCE, folder / EMBEDDINGS, encoder, encode, topology)
    if bm25:
        on_first_rank(lambda: index_words(folder), topology.world_group)
    return SearchConfig(
        evidence=folder / EVIDENCE,
        embeddings=folder / EMBEDDINGS,
        retriever=encoder.description.folder,
        bm25_index=folder / BM25 if bm25 else None,
    )


def index_words(folder: Path) -> None:
    """Add an index of words to a folder with evidence."""
    evidence = EvidenceStore(folder / EVIDENCE)
    passages = map(evidence.passage, range(len(evidence)))
    build_lexical_index(passages, len(evidence), LexicalConfig(), evidence.fingerprint, folder / BM25)


def embed(
    evidence: Path, output: Path, encoder: LoadedDualEncoder, encode: EncodeConfig, topology: ProcessTopology
) -> None:
    """Write the vectors of all passages; all ranks call this together."""
    job = EmbeddingJob(
        evidence=EvidenceStore(evidence),
        encode=encoder.model.encode_passages,
        text_format=encoder.description.layout,
        encoder_fingerprint=encoder.description.fingerprint,
        micro_batch_size=encode.micro_batch_size,
    )
    embed_evidence(job, output, topology)
