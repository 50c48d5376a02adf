"""Evidence, its embeddings and the encoder that made them, opened together and refused unless they belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.dual_encoder import LoadedDualEncoder, load_dual_encoder
from megatron_retrieval.data.evidence import EvidenceStore
from megatron_retrieval.evaluation import AnswerMatcher
from megatron_retrieval.evaluation.results import Retrieved
from megatron_retrieval.evaluation.retriever_task import evaluate_retriever
from megatron_retrieval.index import EmbeddingStore, ShardedIndex
from megatron_retrieval.parallel import ProcessTopology
from megatron_retrieval.retrieval import EncodeConfig, Retriever, encode_questions
from megatron_retrieval.retrieval.retriever import tokenize_questions
from megatron_retrieval.tokenizers import WordPieceTokenizer
from megatron_retrieval.types import Passage, Question


@dataclass(kw_only=True, frozen=True)
class SearchConfig:
    """What is searched, and by which encoder."""

    evidence: Path
    """Folder of the evidence (tools/build_evidence.py)."""
    embeddings: Path
    """Folder of the evidence's embeddings (tools/embed_evidence.py)."""
    load: Path
    """Checkpoint of the dual encoder that made the embeddings."""
    verify_embeddings: bool = False
    """Read all embeddings once and compare their checksums before they are searched."""


@dataclass(frozen=True)
class SearchSession:
    """Everything that answers "which passages are nearest to this question?"."""

    encoder: LoadedDualEncoder
    evidence: EvidenceStore
    embeddings: EmbeddingStore
    tokenizer: WordPieceTokenizer
    retriever: Retriever
    device: torch.device

    def search(self, questions: Sequence[str], k: int) -> list[list[tuple[Passage, float]]]:
        """For each question the k best (passage, score); a collective where several ranks hold the index."""
        result = self.retriever.retrieve(self._encode(questions).to(self.device), k)
        return [
            [(self.evidence.passage(row), score) for row, score in zip(rows, scores, strict=True) if row >= 0]
            for rows, scores in zip(result.rows.tolist(), result.scores.tolist(), strict=True)
        ]

    def evaluate(
        self,
        questions: Sequence[Question],
        matcher: AnswerMatcher,
        topology: ProcessTopology,
        *,
        depth: int,
        micro_batch_size: int,
    ) -> Retrieved:
        """The `depth` best passages for each question, and which of them hold an answer; see `evaluate_retriever`."""
        text_format = self.encoder.description.text_format
        return evaluate_retriever(
            questions,
            tokenize_questions([question.text for question in questions], self.tokenizer, text_format),
            self.encoder.model.encode_queries,
            self.retriever,
            self.evidence,
            matcher,
            topology,
            depth=depth,
            micro_batch_size=micro_batch_size,
        )

    def protocol(self) -> dict[str, Any]:
        """What the passages that are found depend on, for the record."""
        return {
            "evidence_fingerprint": self.evidence.fingerprint,
            "encoder_fingerprint": self.encoder.description.fingerprint,
            "embedding_dtype": self.embeddings.manifest.identity.dtype,
        }

    def _encode(self, questions: Sequence[str]) -> Tensor:
        text_format = self.encoder.description.text_format
        return encode_questions(
            questions, self.tokenizer, text_format, self.encoder.model.encode_queries, device=self.device
        )


def open_search(config: SearchConfig, encode: EncodeConfig, topology: ProcessTopology) -> SearchSession:
    """Open all three and check that they belong together; the index is spread over all ranks.

    Raises:
        MismatchError: naming the two that do not.
    """
    evidence = EvidenceStore(config.evidence)
    embeddings = EmbeddingStore(config.embeddings)
    embeddings.require(evidence_fingerprint=evidence.fingerprint)
    encoder = load_encoder_for(evidence, config.load, topology, encode.dtype)
    embeddings.require(encoder_fingerprint=encoder.description.fingerprint)
    if config.verify_embeddings and topology.is_main:
        embeddings.verify()
    retriever = Retriever(ShardedIndex(embeddings, topology))
    return SearchSession(encoder, evidence, embeddings, evidence.tokenizer, retriever, topology.device)


def load_encoder_for(
    evidence: EvidenceStore, checkpoint: Path, topology: ProcessTopology, dtype: torch.dtype
) -> LoadedDualEncoder:
    """A checkpoint's encoder in evaluation mode, to encode passages of `evidence`.

    Raises:
        MismatchError: the evidence was tokenized with another vocabulary than the checkpoint's.
    """
    encoder = load_dual_encoder(checkpoint, topology, dtype)
    vocabulary = WordPieceTokenizer(encoder.description.vocab_file, encoder.description.lower_case)
    evidence.require_vocabulary(vocabulary, f"the checkpoint {checkpoint}")
    return encoder
