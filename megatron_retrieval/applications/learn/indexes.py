"""Evidence of a table of passages, its corpus and its vectors, which come from earlier stores where they can."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from megatron_retrieval.applications.interface.indexing import EncoderEvidenceConfig
from megatron_retrieval.checkpoint.kinds.dual_encoder import load_encoder_for
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.stores.corpus_builder import CorpusBuilderConfig, build_corpus
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import build_evidence
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore, StoreIdentity
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.embedder import embed_evidence
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.retrieval.known_vectors import KnownVectors
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.utils.files import atomic_file
from megatron_retrieval.utils.manifest import MANIFEST


def evidence_of(passages: Path, output: Path, encoder: Path, workers: int) -> Path:
    """The evidence of a table of passages, in an encoder's vocabulary; it is built unless it is there."""
    if not output.exists():
        config = EncoderEvidenceConfig(input=(str(passages),), output=str(output), checkpoint=encoder, workers=workers)
        build_evidence(config)
    return output


def corpus_of(passages: Path, output: Path, vocabulary: Vocabulary, language: str, workers: int = 1) -> Path:
    """The sentences of a table of passages, each passage a document: what ICT trains on is as long as what is searched,
    and passages of one document are one another's negatives.

    Raises:
        ConfigError: corpora of this kind of vocabulary cannot be built yet.
    """
    if output.exists():
        return output
    if not isinstance(vocabulary, WordPieceTokenizer):
        raise ConfigError(
            f"--adapt: an encoder with a vocabulary of {vocabulary.kind} cannot learn from sentences yet."
        )
    text = output.with_suffix(".jsonl")
    if not text.exists():
        with atomic_file(text) as file:
            for _, passage in read_passages(passages):
                file.write(json.dumps({"title": passage.title, "text": passage.text}) + "\n")
    config = CorpusBuilderConfig(
        input=(str(text),),
        output=str(output),
        vocab_file=str(vocabulary.path),
        lower_case=vocabulary.settings()["lower_case"],
        language=language,
        workers=workers,
    )
    build_corpus(config)
    return output


def embed(
    evidence: Path, encoder: Path, learned: Path, config: EncodeConfig, topology: ProcessTopology
) -> tuple[Path, int]:
    """Embed the evidence into a folder beside it, named after the encoder; continues after a stop.

    Args:
        encoder: its checkpoint.
        learned: the folder that is looked through for earlier vectors.

    Returns:
        The folder, and the number of passages that were encoded.
    """
    store = EvidenceStore(evidence)
    loaded = load_encoder_for(store, encoder, topology, config.on(topology.device))
    fingerprint, layout = loaded.description.fingerprint, loaded.description.layout
    output = evidence.parent / f"embeddings-{fingerprint}"
    job = EmbeddingJob(
        evidence=store,
        encode=loaded.model.encode_passages,
        text_format=layout,
        encoder_fingerprint=fingerprint,
        micro_batch_size=config.micro_batch_size,
    )
    is_finished = (output / MANIFEST).exists()
    earlier = [] if is_finished else list(_earlier(learned, output, job.identity))
    known = KnownVectors(loaded.model, layout, earlier)
    job = EmbeddingJob(**{**vars(job), "encode": known.encode_passages})
    embed_evidence(job, output, topology)
    return output, known.num_encoded


def _earlier(learned: Path, output: Path, wanted: StoreIdentity) -> Iterator[tuple[EvidenceStore, EmbeddingStore]]:
    """Finished vectors of the same encoder, computed and stored in the same types, with their evidence."""
    for folder in sorted(learned.glob(f"*/**/{output.name}")):
        if folder == output:
            continue
        try:
            evidence, store = EvidenceStore(folder.parent / "evidence"), EmbeddingStore(folder)
        except DataError:  # unfinished
            continue
        identity = store.manifest.identity
        if (identity.dtype, identity.precision) == (wanted.dtype, wanted.precision):
            yield evidence, store
