"""Index the words of the evidence for lexical search (BM25)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.index.bm25 import LexicalConfig, build_lexical_index
from megatron_retrieval.utils.logging import get_logger


@dataclass(kw_only=True, frozen=True)
class BuildBm25Config:
    """Index the evidence for BM25."""

    evidence: Path
    """Folder of the evidence (build evidence)."""
    output: Path
    """Folder of the index to write."""
    lexical: LexicalConfig = field(default_factory=LexicalConfig)
    """How passages are scored."""


def main(config: BuildBm25Config) -> None:
    evidence = EvidenceStore(config.evidence)
    passages = map(evidence.passage, range(len(evidence)))
    build_lexical_index(passages, len(evidence), config.lexical, evidence.fingerprint, config.output)
    get_logger().info("%s passages indexed in %s", f"{len(evidence):,}", config.output)
