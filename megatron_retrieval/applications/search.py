"""Opens evidence with what searches it (an encoder with its embeddings, a BM25 index, or both) and refuses parts that
do not belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_retrieval.applications.dense_search import DenseSearch
from megatron_retrieval.applications.learn.folder import LearnedFolder
from megatron_retrieval.applications.reranking import open_reranker
from megatron_retrieval.checkpoint.kinds.dual_encoder import LoadedDualEncoder, embedding_encoder, load_encoder_for
from megatron_retrieval.config.marks import formerly
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.answer_matching import AnswerMatcher
from megatron_retrieval.evaluation.retrieval_results import Retrieved, recorded
from megatron_retrieval.evaluation.retriever_task import Found, judge_shares
from megatron_retrieval.index.approximate.index import ApproximateIndex, ApproximateSearchConfig, open_index
from megatron_retrieval.index.bm25 import LexicalIndex
from megatron_retrieval.index.exact.placement import Placement
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.left_open import ScoresOf
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.retrieval.index_versions import IndexVersions
from megatron_retrieval.retrieval.rank_fusion import RankFusionConfig, fuse, fused_depth
from megatron_retrieval.retrieval.reranker import RerankConfig, Reranker
from megatron_retrieval.retrieval.retriever import Retriever
from megatron_retrieval.types.questions import Passage, Question
from megatron_retrieval.types.search import SearchResult
from megatron_retrieval.utils.manifest import MANIFEST

SearchMethod = Literal["hybrid", "dense", "bm25"]


@dataclass(kw_only=True, frozen=True)
class SearchOptionsConfig:
    """How evidence is searched."""

    fusion: RankFusionConfig = field(default_factory=RankFusionConfig)
    """Fusion of dense search and BM25."""
    approximate: ApproximateSearchConfig = field(default_factory=ApproximateSearchConfig)
    """Exact or approximate search."""
    rerank: RerankConfig = field(default_factory=RerankConfig)
    """What reorders the passages found."""
    index_placement: Placement = "auto"
    """Exact search on CPU: memory (keeps an int8 copy of the embeddings), disk (reads all embeddings for every search,
    in little memory), or auto (memory if the copy takes at most half of what is free). Results do not depend on it."""
    verify_embeddings: bool = False
    """Verify the checksums of the embeddings (and of --index) before the first search."""


@dataclass(kw_only=True, frozen=True)
class SearchConfig:
    """What is searched, and how: by an encoder, by BM25, or by both."""

    evidence: Path
    """Folder of the evidence (build evidence); or one that megatron-retrieval learn keeps, whose newest
    version is searched by words and vectors without any other flag."""
    embeddings: Path | None = None
    """Folder of the evidence's embeddings (embed), with --retriever; or the --index-dir of a training
    run: its newest finished version is searched, with the encoder that made it."""
    retriever: Path | None = field(default=None, metadata=formerly("load"))
    """Checkpoint of the dual encoder that made the embeddings."""
    embedded_by: Path | None = None
    """Checkpoint that made the embeddings, where --retriever has the same encoder of passages, frozen in training."""
    bm25_index: Path | None = None
    """Folder of the evidence's BM25 index (build bm25); beside --retriever: both are searched."""
    options: SearchOptionsConfig = field(default_factory=SearchOptionsConfig)
    """How."""

    def __post_init__(self) -> None:
        if (self.embeddings is None) != (self.retriever is None):
            raise ConfigError("--embeddings and --retriever belong together: give both, or --bm25-index alone.")
        if self.retriever is None and self.bm25_index is None and LearnedFolder.at(self.evidence) is None:
            raise ConfigError("Nothing to search with: give --embeddings and --retriever, --bm25-index, or all three.")
        if self.embeddings is None and self.options.approximate.index is not None:
            raise ConfigError("--index is of embeddings: give --embeddings and --retriever as well.")

    @property
    def scores_of(self) -> ScoresOf:
        """What the scores of the passages are of that are found."""
        if self.options.rerank.rerank is not None:
            return "reranker"
        return "retriever" if self.retriever is not None and self.bm25_index is None else "other"


@dataclass(frozen=True)
class SearchSession:
    """Everything that a search needs; at least one of dense and lexical."""

    evidence: EvidenceStore
    dense: DenseSearch | None
    lexical: LexicalIndex | None
    fusion: RankFusionConfig
    reranker: Reranker | None = None

    @property
    def methods(self) -> tuple[SearchMethod, ...]:
        """The ways in which it can search; the first is that of `search`."""
        if self.dense is None:
            return ("bm25",)
        return ("dense",) if self.lexical is None else ("hybrid", "dense", "bm25")

    def by(self, method: SearchMethod) -> SearchSession:
        """The same evidence, searched in one of its `methods`."""
        if method == "dense":
            return replace(self, lexical=None)
        return replace(self, dense=None) if method == "bm25" else self

    def search(self, questions: Sequence[str], k: int) -> list[list[tuple[Passage, float]]]:
        """For each question the k best (passage, score); a collective where several ranks hold the index."""
        dense = self.dense.search(questions, self._depth(k)) if self.dense else None
        result = self._beside_words(questions, dense, self._listed(k))
        if self.reranker:
            result = self.reranker.rerank(questions, result, self.evidence, k)
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
        """The `depth` best passages for each question, and which of them hold an answer; see `judge_shares`."""
        texts, dense = [question.text for question in questions], None
        # without an encoder, ranks share the questions evenly
        positions = torch.arange(topology.rank, len(texts), topology.world_size)
        if self.dense:
            found = self.dense.share(texts, topology, depth=self._depth(depth), micro_batch_size=micro_batch_size)
            positions, dense = found.positions, found.result
        asked = [texts[position] for position in positions.tolist()]
        result = self._beside_words(asked, dense, self._listed(depth))
        if self.reranker:
            result = self.reranker.rerank_share(asked, result, self.evidence, depth, topology)
        return judge_shares(questions, Found(positions, result), self.evidence, matcher, topology)

    def protocol(self) -> dict[str, Any]:
        """Settings that the results depend on, for the record."""
        parts: dict[str, Any] = {"evidence_fingerprint": self.evidence.fingerprint}
        if self.dense:
            parts["encoder_fingerprint"] = self.dense.encoder.description.fingerprint
            parts["embedding_dtype"] = self.dense.embeddings.manifest.identity.dtype
            if isinstance(self.dense.retriever.index, ApproximateIndex):
                parts |= self.dense.retriever.index.protocol()
        if self.lexical:
            parts |= recorded(self.lexical.config)
        if self.dense and self.lexical:
            parts |= recorded(self.fusion)
        return parts | (self.reranker.protocol() if self.reranker else {})

    def _listed(self, k: int) -> int:
        """Passages that the searches together must find for the k best."""
        return max(k, self.reranker.depth) if self.reranker else k

    def _depth(self, k: int) -> int:
        """Passages that each search must find."""
        listed = self._listed(k)
        return fused_depth(self.fusion, listed) if self.dense and self.lexical else listed

    def _beside_words(self, questions: Sequence[str], dense: SearchResult | None, k: int) -> SearchResult:
        """The result of dense search, of BM25, or their fusion."""
        if self.lexical is None:
            assert dense is not None
            return dense
        lexical = self.lexical.search(questions, self._depth(k))
        return lexical if dense is None else fuse(dense, lexical, self.fusion, k)


def open_search(
    config: SearchConfig, encode: EncodeConfig, topology: ProcessTopology, *, encoder: LoadedDualEncoder | None = None
) -> SearchSession:
    """Open all parts and check that they belong together; embeddings are spread over all ranks.

    Args:
        encoder: the retriever, where it is loaded already.

    Raises:
        MismatchError: naming the two that do not.
    """
    config = newest_version(config)
    evidence, options = EvidenceStore(config.evidence), config.options
    lexical = None if config.bm25_index is None else open_lexical(config.bm25_index, evidence)
    dense = None
    if config.embeddings is not None and config.retriever is not None:
        embeddings = EmbeddingStore(config.embeddings)
        embeddings.require(evidence_fingerprint=evidence.fingerprint)
        encoder = encoder or load_encoder_for(evidence, config.retriever, topology, encode.on(topology.device))
        made_by = embedding_encoder(encoder, config.embedded_by, topology)
        embeddings.require(encoder_fingerprint=made_by.fingerprint)
        encoder.model.cut(embeddings.manifest.identity.embedding_size or None)
        if options.verify_embeddings and topology.is_main:
            embeddings.verify()
        index = open_index(options.approximate, embeddings, topology, options.index_placement)
        if options.verify_embeddings and topology.is_main and isinstance(index, ApproximateIndex):
            index.verify()
        retriever = Retriever(index)
        dense = DenseSearch(encoder, embeddings, evidence.vocabulary, retriever, topology.device)
    reranker = open_reranker(options.rerank, encode, topology)
    return SearchSession(evidence, dense, lexical, options.fusion, reranker)


def newest_version(config: SearchConfig) -> SearchConfig:
    """The configuration with the newest finished version, where --evidence names a folder that learn keeps or
    --embeddings one of versions.

    Raises:
        ConfigError: parts are given beside a folder that has all of them.
    """
    learned = LearnedFolder.at(config.evidence)
    if learned is not None:
        if config.retriever is not None or config.bm25_index is not None:
            raise ConfigError(f"--evidence {config.evidence} has vectors and words of its own: give no others.")
        return replace(
            config,
            evidence=learned.evidence,
            embeddings=learned.embeddings,
            retriever=learned.retriever,
            bm25_index=learned.bm25_index,
        )
    if config.embeddings is None or (config.embeddings / MANIFEST).exists():
        return config
    versions = IndexVersions(config.embeddings)
    finished = versions.complete()
    if not finished:
        return config
    return replace(config, embeddings=versions.path(finished[-1]), retriever=versions.snapshot(finished[-1]))


def open_lexical(folder: Path, evidence: EvidenceStore) -> LexicalIndex:
    """The BM25 index in `folder`.

    Raises:
        MismatchError: it is of another evidence.
    """
    index = LexicalIndex(folder)
    index.require(evidence.fingerprint)
    return index
