"""Which passages a step reads: found in the index by the query encoder of the moment, without gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.exact.sharded import ShardedIndex
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.collectives import broadcast_first
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.retriever import Retriever
from megatron_retrieval.training.steps.step import encode_texts, evaluation_mode
from megatron_retrieval.types.search import FILLER_ROW, NULL_ROW, SearchResult
from megatron_retrieval.types.tokens import TokenBatch, to_device


@dataclass(kw_only=True, frozen=True)
class TopkConfig(Checked):
    """How many passages are found and read for a question."""

    num_passages: PositiveInt = 8
    """Passages read for each question (the k of top-k)."""
    num_candidates: int | None = None
    """Retrieve so many, encode them anew, and read the best --num-passages by their fresh scores; default: as many as
    are read, in the order of the index. With --freeze-passage-encoder nothing is encoded, see --early-loss."""
    null_passage: bool = False
    """The last of the --num-passages is the null passage, which has neither title nor text: the retriever learns when
    no passage helps, and the reader reads the question alone (REALM). Of training and its validation loss; answers are
    read from found passages only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_candidates is not None and self.num_candidates < self.num_passages:
            raise ConfigError(
                f"--num-candidates {self.num_candidates} must not be below --num-passages {self.num_passages}."
            )
        if self.null_passage and self.num_passages < 2:
            raise ConfigError("--null-passage is one of --num-passages, which must be at least 2.")

    @property
    def num_found(self) -> int:
        """Passages of the evidence among those that are read."""
        return self.num_passages - self.null_passage


class PassageSearch:
    """Searches the index of the moment.

    Attributes:
        index: replaced when it is refreshed; None until the first one is there.
        last_queries: [n, D] the query vectors of this rank's last search.

    Args:
        encode_batch_size: passages encoded at once.
        frozen: the passage encoder keeps its weights, so that the index holds the vectors of the moment; passages are
            not encoded again.
    """

    def __init__(
        self,
        config: TopkConfig,
        retriever: DualEncoder,
        evidence: EvidenceStore,
        text_format: TextFormatConfig,
        topology: ProcessTopology,
        *,
        encode_batch_size: int,
        frozen: bool = False,
    ) -> None:
        self.config, self._model, self._evidence, self._format = config, retriever, evidence, text_format
        self._topology, self._encode_batch_size = topology, encode_batch_size
        self.frozen = frozen
        self.index: ShardedIndex | None = None
        self._null_vector: Tensor | None = None
        self.last_queries: Tensor | None = None

    def find(self, batch: AskedBatch) -> SearchResult:
        """The passages to read for each question, best first: [n, K] rows; then the null passage, if it is a candidate;
        then fillers, where the evidence has no more.

        A collective over all ranks. The query encoder is in evaluation mode, so that what is found does not depend on
        the number of ranks. Scores are those of the index, or the fresh ones where candidates are re-ranked; the null
        passage has none (NaN).
        """
        return self.to_read(self.candidates(batch))

    @torch.no_grad()
    def candidates(self, batch: AskedBatch) -> SearchResult:
        """[n, C] by the index: as many as are read, or --num-candidates. A collective over all ranks."""
        device = self._topology.device
        with evaluation_mode(self._model):
            self.last_queries = vectors = self._model.encode_queries(batch.retriever_queries.to(device))
            return self._ask(vectors, to_device(batch.excluded_rows, device))

    @torch.no_grad()
    def to_read(self, found: SearchResult) -> SearchResult:
        """Of the candidates of the last search, the passages to read; see `find`."""
        if self.config.num_candidates is not None:
            if self.frozen:
                found = self._best(found)
            else:
                assert self.last_queries is not None
                with evaluation_mode(self._model):
                    found = self._rerank(self.last_queries, found)
        return with_null_passage(found) if self.config.null_passage else found

    def _ask(self, vectors: Tensor, excluded: Tensor) -> SearchResult:
        """Tensor-parallel neighbours have the same questions: the first of them asks, and tells the others."""
        k, num_questions = self.config.num_candidates or self.config.num_found, len(vectors)
        asks = self._topology.tp_rank == 0
        result = Retriever(self.current_index()).retrieve(
            vectors[: num_questions * asks], k, excluded[: num_questions * asks]
        )
        scores, rows = result.scores.to(vectors.device), result.rows.to(vectors.device)
        if not asks:
            scores, rows = scores.new_empty(num_questions, k), rows.new_empty(num_questions, k)
        group = self._topology.groups.tp
        return SearchResult(broadcast_first(scores, group), broadcast_first(rows, group))

    def current_index(self) -> ShardedIndex:
        """What is searched now."""
        assert self.index is not None, "there is no index to search yet"
        return self.index

    def _rerank(self, vectors: Tensor, found: SearchResult) -> SearchResult:
        """The best of the candidates by the passage encoder of the moment; equal scores keep their order."""
        scores = self.fresh_scores(vectors, found.rows).masked_fill(found.rows < 0, float("-inf"))
        order = scores.sort(dim=1, descending=True, stable=True).indices
        return self._best(SearchResult(scores.gather(1, order), found.rows.gather(1, order)))

    def _best(self, found: SearchResult) -> SearchResult:
        """As many as are read."""
        return SearchResult(found.scores[:, : self.config.num_found], found.rows[:, : self.config.num_found])

    @torch.no_grad()
    def stored_vectors(self, rows: Tensor) -> Tensor:
        """[n, K, D] float32 of [n, K] rows, read from the index; only the null passage is encoded, once. Those of
        fillers mean nothing. A collective over all ranks."""
        vectors = self.current_index().vectors_of(rows.clamp(min=0).flatten()).view(*rows.shape, -1)
        if self.config.null_passage:
            if self._null_vector is None:
                null = self.tokens(torch.tensor([NULL_ROW])).to(self._topology.device)
                with evaluation_mode(self._model):
                    self._null_vector = self._model.encode_passages(null)[0]
            # no assignment through a mask: a GPU would make the host wait for its size
            is_null = to_device(rows == NULL_ROW, vectors.device)
            vectors = torch.where(is_null[:, :, None], self._null_vector, vectors)
        return vectors

    def fresh_scores(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """s(q, z) of [n, D] query vectors with [n, K] rows by the passage encoder as it is: [n, K], differentiable;
        those of fillers mean nothing. Each passage is encoded once, however many questions found it."""
        rows = rows.cpu()
        distinct, place_of = torch.unique(rows.masked_fill(rows == FILLER_ROW, 0), return_inverse=True)
        device = self._topology.device
        passages = encode_texts(self._model.encode_passages, self.tokens(distinct), self._encode_batch_size, device)
        return torch.einsum("nd,nkd->nk", vectors, passages[to_device(place_of, device)])

    def tokens(self, rows: Tensor) -> TokenBatch:
        """Passages by row, the null passage among them, as the retriever reads them, on the CPU."""
        return self._evidence.tokens(rows.numpy().astype(np.int64), self._format)


def with_null_passage(found: SearchResult) -> SearchResult:
    """[n, k] -> [n, k + 1]: the null passage behind what was found for each question, before its fillers."""
    scores, rows = F.pad(found.scores, (0, 1), value=torch.nan), F.pad(found.rows, (0, 1), value=NULL_ROW)
    order = (rows == FILLER_ROW).long().sort(dim=1, stable=True).indices
    return SearchResult(scores.gather(1, order), rows.gather(1, order))
