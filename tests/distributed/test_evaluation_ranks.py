"""An evaluation counts every question once and gives the same numbers at any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_retrieval.evaluation.answer_matching import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.evaluation.retrieval_results import retrieval_metrics
from megatron_retrieval.evaluation.retriever_task import Found, judge_shares, retrieve_share
from megatron_retrieval.index.exact.sharded import ShardedIndex
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.reranker import Reranker
from megatron_retrieval.retrieval.retriever import Retriever
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.types.questions import Passage, Question
from megatron_retrieval.types.tokens import TokenBatch

NUM_ROWS, NUM_QUESTIONS, DEPTH, MICRO_BATCH_SIZE = 60, 45, 7, 4


class _Evidence:
    """Passage r says "answer r"; its external id is x<r>."""

    def passages(self, rows: NDArray[np.int64]) -> list[Passage]:
        return [Passage(f"x{row}", "", f"It says answer {row}.") for row in rows]

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        return np.array([int(name[1:]) if int(name[1:]) < NUM_ROWS else -1 for name in ids])


def _vectors() -> torch.Tensor:
    return torch.randn(NUM_ROWS, 5, generator=torch.Generator().manual_seed(0))


def _encode(batch: TokenBatch) -> torch.Tensor:
    """The passage's vector, disturbed by what else is in the batch as floating point would be, only more."""
    return _vectors()[batch.ids[:, 0]] + batch.ids.float().sum() / 1000


def _questions() -> list[Question]:
    golds: list[tuple[str, ...]] = [(), ("x3", "x4"), ("x99",)]
    return [Question(str(n), f"question {n}", (f"answer {n * 7 % 90}",), golds[n % 3]) for n in range(NUM_QUESTIONS)]


def _tokens() -> TokenBatch:
    numbers = torch.arange(NUM_QUESTIONS)
    return TokenBatch((numbers * 7 % NUM_ROWS)[:, None].repeat(1, 6), 1 + numbers % 6)


@dataclass(frozen=True)
class _Scores:
    """Scores that take all ranks of a tensor-parallel group, each with the same passages."""

    topology: ProcessTopology

    def __call__(self, question: str, passages: Sequence[Passage]) -> torch.Tensor:
        names = [passage.id for passage in passages]
        assert gather_objects((question, names), self.topology.groups.tp) == [(question, names)] * self.topology.tp_size
        return torch.tensor([float(int(name[1:]) * len(question) % 7) for name in names])


def _evaluate(topology: ProcessTopology) -> list[object]:
    return [*_figures(topology, rerank=False), *_figures(topology, rerank=True)]


def _figures(topology: ProcessTopology, *, rerank: bool) -> list[object]:
    questions, evidence = _questions(), _Evidence()
    retriever = Retriever(ShardedIndex(_vectors(), topology))
    sizes = {"depth": DEPTH, "micro_batch_size": MICRO_BATCH_SIZE}
    found = retrieve_share(_tokens(), _encode, retriever, topology, **sizes)
    if rerank:
        reranker = Reranker(_Scores(topology), DEPTH - 2)
        asked = [questions[position].text for position in found.positions.tolist()]
        result = reranker.rerank_share(asked, found.result, evidence, DEPTH, topology)  # type: ignore[arg-type]
        found = Found(found.positions, result)
    retrieved = judge_shares(questions, found, evidence, AnswerMatcher(AnswerMatchConfig()), topology)
    metrics = retrieval_metrics(retrieved.ranks, [1, 3, DEPTH])
    return [metrics, retrieved.rows.tolist(), retrieved.scores.tolist(), retrieved.ranks.gold.tolist()]


def test_same_numbers_at_any_number_of_ranks() -> None:
    (single,) = run_on_ranks(_evaluate, 1)
    metrics = single[0]
    assert metrics["num_questions"] == NUM_QUESTIONS
    assert metrics["num_gold_questions"] == 15  # a third names gold that is there, a third gold of another evidence
    assert single[:4] != single[4:]
    assert 0 < metrics["recall@1"] < metrics[f"recall@{DEPTH}"] < 1
    for num_ranks, tensor_parallel in [(2, 1), (2, 2), (4, 2)]:
        ranks = run_on_ranks(_evaluate, num_ranks, tensor_model_parallel_size=tensor_parallel)
        assert all(rank == single for rank in ranks)
