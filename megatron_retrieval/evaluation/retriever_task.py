"""Evaluates a retriever on questions; each rank encodes and judges its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_retrieval.evaluation.answer_matching import AnswerMatcher
from megatron_retrieval.evaluation.rank_metrics import UNKNOWN, RetrievalRanks, first_hit_ranks
from megatron_retrieval.evaluation.retrieval_results import PassagesByRow, Retrieved
from megatron_retrieval.index.exact.pair_scores import empty_result
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import Encode, encode_batches, require_evaluation_mode
from megatron_retrieval.retrieval.retriever import Retriever
from megatron_retrieval.types.questions import Question
from megatron_retrieval.types.search import SearchResult
from megatron_retrieval.types.tokens import TokenBatch, by_length

#: micro-batches of questions per search of the index
_BATCHES_PER_SEARCH = 8


class SearchedEvidence(PassagesByRow, Protocol):
    """Evidence in which gold passages are looked up."""

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each external id, -1 where there is no such passage."""
        ...


@dataclass(frozen=True)
class Found:
    """The passages that one rank retrieved for its share of the questions.

    Attributes:
        positions: [n] int64, indices of its questions among all.
        result: [n, depth], on the CPU.
    """

    positions: Tensor
    result: SearchResult


@dataclass(frozen=True)
class _Share:
    """The passages that one rank retrieved, with answers and gold passages marked."""

    positions: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    has_answer: NDArray[np.bool_]
    answer: NDArray[np.int64]
    gold: NDArray[np.int64]


def evaluate_retriever(
    questions: Sequence[Question],
    tokens: TokenBatch,
    encode: Encode,
    retriever: Retriever,
    evidence: SearchedEvidence,
    matcher: AnswerMatcher,
    topology: ProcessTopology,
    *,
    depth: int,
    micro_batch_size: int = 128,
) -> Retrieved:
    """Retrieve `depth` passages for every question and mark answers and gold passages: `retrieve_share`, then
    `judge_shares`. A collective over all ranks; every rank gets the whole result."""
    found = retrieve_share(tokens, encode, retriever, topology, depth=depth, micro_batch_size=micro_batch_size)
    return judge_shares(questions, found, evidence, matcher, topology)


def retrieve_share(
    tokens: TokenBatch,
    encode: Encode,
    retriever: Retriever,
    topology: ProcessTopology,
    *,
    depth: int,
    micro_batch_size: int = 128,
) -> Found:
    """Retrieve `depth` passages for this rank's share of the questions; a collective over all ranks.

    Batches are cut before they are distributed, so that a question's vector does not depend on the data-parallel size.

    Args:
        tokens: all questions, laid out for `encode`.
        retriever: over an index that is sharded over the ranks, or that every rank holds.
    """
    require_evaluation_mode(encode)
    batches = by_length(tokens.lengths, micro_batch_size, longest_first=True)
    shares = [batches[rank :: topology.dp_size] for rank in range(topology.dp_size)]
    rounds = -(-max(map(len, shares)) // _BATCHES_PER_SEARCH) if batches else 0
    nothing = empty_result(0, depth, torch.device("cpu"))
    found = [(torch.empty(0, dtype=torch.int64), nothing.rows, nothing.scores)]
    for number in range(rounds):
        window = slice(number * _BATCHES_PER_SEARCH, (number + 1) * _BATCHES_PER_SEARCH)
        mine = shares[topology.dp_rank][window]
        found.append(_retrieve(mine, tokens, encode, retriever, topology, depth))
    positions, rows, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Found(positions, SearchResult(scores=scores, rows=rows))


def judge_shares(
    questions: Sequence[Question],
    found: Found,
    evidence: SearchedEvidence,
    matcher: AnswerMatcher,
    topology: ProcessTopology,
) -> Retrieved:
    """Mark answers and gold passages in the shares of all ranks; a collective, every rank gets the whole result.

    Args:
        found: this rank's share; every question belongs to one rank.
    """
    share = _judge(questions, evidence, matcher, found)
    matcher.num_bad_patterns = sum(gather_objects(matcher.num_bad_patterns, topology.world_group))
    return _join(gather_objects(vars(share), topology.world_group), len(questions))


def without_own_passages(
    questions: Sequence[Question], retrieved: Retrieved, evidence: SearchedEvidence, depth: int
) -> Retrieved:
    """What would have been retrieved if no passage had the id of its question.

    Args:
        retrieved: [Q, depth + 1], so that `depth` are left where one of them is left out.

    Returns:
        [Q, depth], with ranks of their own.
    """
    own = evidence.rows_of([question.id for question in questions])
    is_own = (retrieved.rows == own[:, None]) & (retrieved.rows >= 0)
    order = np.argsort(is_own, axis=1, kind="stable")[:, :depth]  # the own passage comes last
    rows, scores, has_answer = (
        np.take_along_axis(np.where(is_own, nothing, part), order, 1)
        for part, nothing in ((retrieved.rows, -1), (retrieved.scores, -np.inf), (retrieved.has_answer, False))
    )
    others = (
        replace(question, gold_passage_ids=tuple(name for name in question.gold_passage_ids if name != question.id))
        for question in questions
    )
    gold = [_gold_rank(question, found, evidence) for question, found in zip(others, rows, strict=True)]
    answer = np.where(retrieved.ranks.answer == UNKNOWN, UNKNOWN, first_hit_ranks(has_answer))
    return Retrieved(rows, scores, has_answer, RetrievalRanks(answer, np.array(gold, np.int64)))


def _retrieve(
    batches: list[Tensor],
    tokens: TokenBatch,
    encode: Encode,
    retriever: Retriever,
    topology: ProcessTopology,
    depth: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(positions [n], rows [n, depth], scores [n, depth]) of these batches.

    All tensor-parallel ranks encode; the first of them searches the index, the others send no query.
    """
    dimension = retriever.index.dimension
    vectors = encode_batches(tokens, batches, encode, topology.device) if batches else torch.empty(0, dimension)
    positions = torch.cat(batches) if batches else torch.empty(0, dtype=torch.int64)
    if topology.tp_rank > 0:
        vectors, positions = vectors[:0], positions[:0]
    result = retriever.retrieve(vectors.to(topology.device), depth)
    return positions, result.rows.cpu(), result.scores.cpu()


def _judge(questions: Sequence[Question], evidence: SearchedEvidence, matcher: AnswerMatcher, found: Found) -> _Share:
    """Mark answers and gold passages in what this rank retrieved."""
    positions, rows, scores = (part.numpy() for part in (found.positions, found.result.rows, found.result.scores))
    has_answer = np.zeros(rows.shape, np.bool_)
    gold = np.full(len(rows), UNKNOWN, np.int64)
    for number, position in enumerate(positions.tolist()):
        question, retrieved = questions[position], rows[number][rows[number] >= 0]
        has_answer[number, : len(retrieved)] = matcher.hits(question.answers, evidence.passages(retrieved))
        gold[number] = _gold_rank(question, rows[number], evidence)
    has_answers = np.array([bool(questions[position].answers) for position in positions.tolist()], np.bool_)
    answer = np.where(has_answers, first_hit_ranks(has_answer), UNKNOWN)
    return _Share(positions, rows, scores, has_answer, answer, gold)


def _gold_rank(question: Question, rows: NDArray[np.int64], evidence: SearchedEvidence) -> int:
    """Rank of the first gold passage; UNKNOWN where the evidence has no gold passage of the question."""
    if not question.gold_passage_ids:
        return UNKNOWN
    gold = evidence.rows_of(question.gold_passage_ids)
    gold = gold[gold >= 0]
    return int(first_hit_ranks(np.isin(rows, gold)[None])[0]) if len(gold) else UNKNOWN


def _join(shares: list[dict[str, NDArray]], num_questions: int) -> Retrieved:
    """All ranks' shares in the order of the questions."""
    joined = {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
    order = np.argsort(joined["positions"])
    if not np.array_equal(joined["positions"][order], np.arange(num_questions)):
        raise AssertionError("a question was counted twice or not at all")
    ranks = RetrievalRanks(joined["answer"][order], joined["gold"][order])
    return Retrieved(joined["rows"][order], joined["scores"][order], joined["has_answer"][order], ranks)
