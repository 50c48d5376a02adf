"""Answers of a fusion reader to a batch of questions, from all passages jointly or from each separately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_retrieval.evaluation.likeliest_answer import likeliest_answer
from megatron_retrieval.models.beams import Generated
from megatron_retrieval.models.encoded_sources import EncodedSources
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.objectives.end_to_end import log_priors
from megatron_retrieval.types.tokens import TokenBatch, to_device


@dataclass(frozen=True)
class Written:
    """A generated answer.

    Attributes:
        ids: with the end token unless the answer reached the limit; padding may follow.
        score: see `GenerationConfig`; the log of the sum over passages where each is read separately.
        passage: index (from 0) of the passage that gives the answer the highest likelihood; None where all are read
            jointly.
    """

    ids: list[int]
    score: float
    passage: int | None = None


@dataclass(frozen=True)
class Candidate:
    """The answer from one passage.

    Attributes:
        ids: without padding.
        log_likelihood: log p(z | q) p(a | q, z).
    """

    ids: tuple[int, ...]
    log_likelihood: float
    passage: int


class AnswerSearch:
    """Generates the answers of a reader.

    Args:
        reader: in evaluation mode.
        tp_group: the ranks that share the reader; all of them call this together and get equal answers.
    """

    def __init__(
        self, reader: FusionReader, config: GenerationConfig, scores: PassageScoreConfig, tp_group: dist.ProcessGroup
    ) -> None:
        self._reader, self._config, self._scores, self._tp_group = reader, config, scores, tp_group

    @torch.no_grad()
    def find(self, texts: TokenBatch, is_real: Tensor, scores: Tensor) -> list[Written]:
        """One answer per question.

        Args:
            texts: B * K rows on the CPU, the K texts of a question in consecutive rows.
            is_real: [B, K] bool on the CPU, False for fillers; every question has a text.
            scores: [B, K] float on the reader's device, the retriever's scores of the passages.
        """
        priors = log_priors(scores / self._scores.passage_score_divisor, to_device(is_real, scores.device))
        if self._scores.passage_score_use == "marginal":
            return self._each(texts, is_real, priors)
        return self._together(texts, is_real, priors)

    def _together(self, texts: TokenBatch, is_real: Tensor, priors: Tensor) -> list[Written]:
        bias = None
        if self._scores.passage_score_use == "bias":
            bias = self._scores.passage_score_weight * priors.masked_fill(~to_device(is_real, priors.device), 0)
        found = self._write(texts, is_real, bias)
        return [Written(ids, score) for ids, score in zip(found.ids.tolist(), found.scores.tolist(), strict=True)]

    def _each(self, texts: TokenBatch, is_real: Tensor, priors: Tensor) -> list[Written]:
        """The answer with the highest sum of p(z | q) p(a | q, z) over the passages whose search ends with it.

        For other passages the term is taken as 0 (fast decoding of RAG, arXiv 2005.11401, section 2.5).
        """
        rows = is_real.flatten().nonzero()[:, 0]
        found = self._write(texts.rows(rows), is_real.new_ones(len(rows), 1))
        likelihoods = (
            priors.flatten()[to_device(rows, priors.device)] + found.scores * found.lengths**self._config.length_penalty
        )
        answers = zip(found.ids.tolist(), found.lengths.tolist(), likelihoods.tolist(), rows.tolist(), strict=True)
        candidates: list[list[Candidate]] = [[] for _ in is_real]
        for ids, length, likelihood, row in answers:
            question, passage = divmod(row, is_real.size(1))
            candidates[question].append(Candidate(tuple(ids[:length]), likelihood, passage))
        return list(map(likeliest, candidates))

    def _write(self, texts: TokenBatch, is_real: Tensor, passage_scores: Tensor | None = None) -> Generated:
        memory = self._reader.encode(texts, is_real, passage_scores)
        return generate(EncodedSources(self._reader.model, memory), self._config, self._tp_group).best


def likeliest(candidates: Sequence[Candidate]) -> Written:
    """The answer by `likeliest_answer`; its score is the log of the sum."""
    ids, likelihoods = zip(*((candidate.ids, candidate.log_likelihood) for candidate in candidates), strict=True)
    place, score = likeliest_answer(ids, likelihoods)
    return Written(list(ids[place]), score, candidates[place].passage)
