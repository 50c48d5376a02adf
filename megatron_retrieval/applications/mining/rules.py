"""Rules that choose hard negatives among retrieved passages; pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from megatron_retrieval.config.checks import Checked, NonNegativeInt, PositiveInt
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.retrieval.reranker import Reranker
from megatron_retrieval.types.questions import Passage


@dataclass(kw_only=True, frozen=True)
class MiningRulesConfig(Checked):
    """Limits of rank and score of hard negatives. A passage that contains an answer, or is a positive of the question,
    is never one."""

    num_mined: PositiveInt = 10
    """Maximum number of hard negatives mined per question; best ranks first."""
    skip_ranks: NonNegativeInt = 0
    """Drop this many of the first passages, which are the most likely to answer without containing an answer string."""
    max_rank: int = 100
    """Drop passages beyond this rank."""
    min_score: float | None = None
    """Drop passages scoring below this."""
    max_score: float | None = None
    """Drop passages scoring above this."""
    margin: float | None = None
    """Drop passages scoring above (best positive − margin): close to the positive, passages are often right too."""
    relative_margin: float | None = None
    """The same as a share of the positive's score: 0.05 keeps passages with at most 95 % of it (arXiv 2407.15831). With
    a margin, nothing is mined for questions whose positive was not found, unless --rerank scores it."""
    keep_hard_negatives: bool = False
    """Keep the hard negatives of the file and append the mined ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_rank <= self.skip_ranks:
            raise ConfigError(f"--max-rank {self.max_rank} and --skip-ranks {self.skip_ranks} leave no passage.")
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise ConfigError(f"--min-score {self.min_score} is above --max-score {self.max_score}: nothing is left.")


@dataclass(frozen=True)
class Hit:
    """A passage that was found for a question.

    Attributes:
        has_answer: the retrieval results say that it contains an answer.
    """

    passage: Passage
    score: float
    has_answer: bool = False


def hard_negatives(
    hits: Sequence[Hit],
    positives: Sequence[Passage],
    kept: Sequence[Passage],
    holds_answer: Callable[[Passage], bool],
    rules: MiningRulesConfig,
    positive_score: float | None = None,
) -> list[Hit]:
    """The hard negatives of one question, in the order of `hits`.

    Args:
        hits: best first.
        positives: passages that answer the question.
        kept: hard negatives that the question has already.
        holds_answer: whether a passage holds an answer to it.
        positive_score: of the best positive; default: the one that it has among the hits.
    """

    def fitting() -> Iterator[Hit]:
        lowest, highest = _score_window(hits, positives, rules, positive_score)
        for hit in hits[rules.skip_ranks : rules.max_rank]:
            is_allowed = lowest <= hit.score <= highest and not is_one_of(hit.passage, (*positives, *kept))
            if is_allowed and not hit.has_answer and not holds_answer(hit.passage):
                yield hit

    return list(islice(fitting(), rules.num_mined))


def rescored(
    question: str, hits: Sequence[Hit], positives: Sequence[Passage], reranker: Reranker
) -> tuple[list[Hit], float | None]:
    """The first hits with a reranker's scores, in their order, and the score of the best positive, found or not; None
    where there is none."""
    hits = hits[: reranker.depth]
    passages = [*(hit.passage for hit in hits), *positives]
    scores = reranker.scores(question, passages).tolist() if passages else []
    anew = [replace(hit, score=score) for hit, score in zip(hits, scores, strict=False)]
    return sorted(anew, key=lambda hit: -hit.score), max(scores[len(hits) :], default=None)


def is_one_of(passage: Passage, others: Sequence[Passage]) -> bool:
    """Whether `passage` has the id or the text of one of the others; files may give the same text different ids."""
    return any(passage.text == other.text or (bool(other.id) and passage.id == other.id) for other in others)


def _score_window(
    hits: Sequence[Hit], positives: Sequence[Passage], rules: MiningRulesConfig, best: float | None
) -> tuple[float, float]:
    """The least and the greatest score of a hard negative."""
    lowest = -math.inf if rules.min_score is None else rules.min_score
    limits = [math.inf if rules.max_score is None else rules.max_score]
    if rules.margin is not None or rules.relative_margin is not None:
        if best is None:
            best = max((hit.score for hit in hits if is_one_of(hit.passage, positives)), default=None)
        if best is None:
            return lowest, -math.inf
        limits += [best - rules.margin] if rules.margin is not None else []
        limits += [best - rules.relative_margin * abs(best)] if rules.relative_margin is not None else []
    return lowest, min(limits)
