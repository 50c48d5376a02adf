"""Reorders found passages by the scores of a cross-encoder (Nogueira & Cho 2019, arXiv 1901.04085)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.layouts.pair import PairFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.models.cross_encoder import CrossEncoder
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import parts_for_cpu
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.types.search import SearchResult
from megatron_retrieval.types.tokens import by_length, in_given_order


@dataclass(kw_only=True, frozen=True)
class RerankConfig(Checked):
    """A cross-encoder over the best passages found."""

    rerank: Path | None = None
    """Checkpoint of a cross-encoder, by whose scores the best passages found are reordered."""
    rerank_topk: PositiveInt = 50
    """Passages that --rerank reorders; at least so many are searched for. Those behind them stay there, in their order:
    their scores are moved, all by the same number, to the lowest of the cross-encoder's."""


@dataclass(frozen=True)
class Reranker:
    """A cross-encoder that is ready to score.

    Attributes:
        model: in evaluation mode.
        depth: passages of each question that it reorders.
        micro_batch_size: pairs of question and passage in one forward pass.
        fingerprint: of the checkpoint.
    """

    model: CrossEncoder
    vocabulary: Vocabulary
    layout: PairFormatConfig
    device: torch.device
    depth: int
    micro_batch_size: int = 128
    fingerprint: str = ""

    @torch.no_grad()
    def scores(self, question: str, passages: Sequence[Passage]) -> Tensor:
        """[n] float32 on the CPU, of one question's passages; they depend on no other question, and batches hold
        passages of similar length."""
        pairs = self.layout.lay_out([question] * len(passages), passages, self.vocabulary)
        lengths = pairs.tokens.lengths
        batches = by_length(lengths, self.micro_batch_size, longest_first=True)
        if self.device.type == "cpu":
            batches = [part for batch in batches for part in parts_for_cpu(lengths[batch], batch)]
        scores = torch.cat([self.model(pairs.rows(batch).to(self.device)) for batch in batches])
        return in_given_order(scores.cpu(), batches)

    def rerank(self, questions: Sequence[str], result: SearchResult, evidence: EvidenceStore, k: int) -> SearchResult:
        """The k best passages after reordering; all ranks of a tensor-parallel group call this with the same.

        Args:
            result: [B, `depth` or more] of B questions, on the CPU.
        """
        rows, scores = result.rows.clone(), result.scores.clone()
        for number, question in enumerate(questions):
            found = rows[number, : self.depth]
            # equal scores are ordered by row
            found = found[found >= 0].sort().values
            if not len(found):
                continue
            last = len(found)
            new, order = self.scores(question, evidence.passages(found.numpy())).sort(descending=True, stable=True)
            # from the same place on, the distances that the search gave
            scores[number, last:] += new[-1] - scores[number, last - 1]
            rows[number, :last], scores[number, :last] = found[order], new
        return SearchResult(scores=scores[:, :k], rows=rows[:, :k])

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
        return {"reranker_fingerprint": self.fingerprint, "rerank_topk": self.depth}
