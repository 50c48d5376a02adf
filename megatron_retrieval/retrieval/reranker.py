"""Reorders found passages by scores that see question and passage together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, Fraction, PositiveInt
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.rank_fusion import scaled
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.types.search import SearchResult


@dataclass(kw_only=True, frozen=True)
class RerankConfig(Checked):
    """What reorders the best passages found."""

    rerank: Path | None = None
    """Checkpoint of a cross-encoder, of late interaction (ColBERT) or of an extractive reader, by whose scores of
    passages the best ones found are reordered."""
    rerank_topk: PositiveInt = 50
    """Passages that --rerank reorders; at least so many are searched for. Those behind them stay there, in their order:
    their scores are moved, all by the same number, to the lowest of the reordered ones."""
    rerank_weight: Fraction = 1.0
    """Weight of the reranker's scores, from 0 to 1; the rest is that of the search's. Below 1 both are scaled to 0 to 1
    within the passages that are reordered, which often finds more than either alone."""


class PassageScorer(Protocol):
    """Scores of one question's passages."""

    def __call__(self, question: str, passages: Sequence[Passage]) -> Tensor:
        """[n] float32 on the CPU; they depend on no other question."""
        ...


@dataclass(frozen=True)
class Reranker:
    """What reorders passages by scores of its own.

    Attributes:
        scores: of a question's passages.
        depth: passages of each question that it reorders.
        fingerprint: of the checkpoint.
        weight: of its scores in a sum with those of the search; 1: they count alone, as they are.
    """

    scores: PassageScorer
    depth: int
    fingerprint: str = ""
    weight: float = 1.0

    def rerank(self, questions: Sequence[str], result: SearchResult, evidence: EvidenceStore, k: int) -> SearchResult:
        """The k best passages after reordering; all ranks of a tensor-parallel group call this with the same.

        Args:
            result: [B, `depth` or more] of B questions, on the CPU.
        """
        rows, scores = result.rows.clone(), result.scores.clone()
        for number, question in enumerate(questions):
            last = int((rows[number, : self.depth] >= 0).sum())
            if not last:
                continue
            # equal scores are ordered by row
            found, place = rows[number, :last].sort()
            new = self._weighed(self.scores(question, evidence.passages(found.numpy())), scores[number, place])
            new, order = new.sort(descending=True, stable=True)
            # from the same place on, the distances that the search gave
            scores[number, last:] += new[-1] - scores[number, last - 1]
            rows[number, :last], scores[number, :last] = found[order], new
        return SearchResult(scores=scores[:, :k], rows=rows[:, :k])

    def _weighed(self, own: Tensor, searched: Tensor) -> Tensor:
        """[n] float32 of the same passages' scores here and in the search."""
        if self.weight == 1:
            return own
        own, searched = (scaled(scores, torch.ones_like(scores, dtype=torch.bool)) for scores in (own, searched))
        return torch.lerp(searched, own, self.weight).float()

    def rerank_share(
        self, questions: Sequence[str], result: SearchResult, evidence: EvidenceStore, k: int, topology: ProcessTopology
    ) -> SearchResult:
        """As `rerank`, for the questions of this rank: a tensor-parallel group scores those of all of its ranks."""
        group = topology.groups.tp
        shares = gather_objects((list(questions), result.rows, result.scores), group)
        asked, rows, scores = zip(*shares, strict=True)
        whole = SearchResult(scores=torch.cat(scores), rows=torch.cat(rows))
        whole = self.rerank([question for share in asked for question in share], whole, evidence, k)
        first = sum(map(len, asked[: group.rank()]))
        mine = slice(first, first + len(questions))
        return SearchResult(scores=whole.scores[mine], rows=whole.rows[mine])

    def protocol(self) -> dict[str, Any]:
        """Settings that the results depend on, for the record."""
        return {"reranker_fingerprint": self.fingerprint, "rerank_topk": self.depth, "rerank_weight": self.weight}
