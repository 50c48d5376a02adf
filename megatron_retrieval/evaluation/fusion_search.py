"""Answers of a reader that writes to a batch of questions, from all passages jointly or from each separately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_retrieval.evaluation.likeliest_answer import likeliest_answer
from megatron_retrieval.models.generation import GenerationConfig, Sources, generate
from megatron_retrieval.models.mixture import MixedSources
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.objectives.end_to_end import log_priors
from megatron_retrieval.types.tokens import TokenBatch, to_device


class TextsReader(Protocol):
    """A reader that can be searched for answers, in evaluation mode."""

    def sources(self, texts: TokenBatch, is_real: Tensor, passage_scores: Tensor | None = None) -> Sources:
        """Read the texts of B questions, a source for each question.

        Args:
            texts: B * K rows on the CPU, the K texts of a question in consecutive rows.
            is_real: [B, K] bool on the CPU, False for fillers; every question has a text.
            passage_scores: [B, K] added to the attention to every token of a passage; None: nothing is.
        """
        ...


@dataclass(frozen=True)
class Written:
    """A generated answer.

    Attributes:
        ids: with the end token unless the answer reached the limit; padding may follow.
        score: see `GenerationConfig`; the log of p(a | q) where each passage is read separately.
        passage: index (from 0) of the passage that gives the answer the highest likelihood; None where all are read
            jointly.
        figures: numbers of the search, by name, whose means over questions are reported.
    """

    ids: list[int]
    score: float
    passage: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """An answer from one passage.

    Attributes:
        ids: without padding.
        log_likelihood: log p(z | q) p(a | q, z).
    """

    ids: tuple[int, ...]
    log_likelihood: float
    passage: int


@dataclass(frozen=True)
class _Each:
    """The passages of B questions, S of them real, each read for itself.

    Attributes:
        sources: S.
        owners: [S] int64, the question of each; `passages` likewise its index among the question's.
        priors: [S] float32, log p(z | q).
    """

    sources: Sources
    owners: Tensor
    passages: Tensor
    priors: Tensor


class AnswerSearch:
    """Generates the answers of a reader.

    Args:
        tp_group: the ranks that share the reader; all of them call this together and get equal answers.

    Raises:
        ConfigError: settings of `MarginalDecodingConfig` contradict.
    """

    def __init__(
        self, reader: TextsReader, config: GenerationConfig, scores: PassageScoreConfig, tp_group: dist.ProcessGroup
    ) -> None:
        self._reader, self._scores, self._tp_group = reader, scores, tp_group
        self._config = config.resolved(scores)

    @torch.no_grad()
    def find(self, texts: TokenBatch, is_real: Tensor, scores: Tensor, names: Sequence[str] = ()) -> list[Written]:
        """One answer per question.

        Args:
            texts: B * K rows on the CPU, the K texts of a question in consecutive rows.
            is_real: [B, K] bool on the CPU, False for fillers; every question has a text.
            scores: [B, K] float on the reader's device, the retriever's scores of the passages.
            names: of the questions, for sampling, see `generate`; its passages share a question's draws.
        """
        priors = log_priors(scores / self._scores.passage_score_divisor, to_device(is_real, scores.device))
        if self._config.answer_from == "concatenated":
            return self._together(texts, is_real, priors, names)
        each = self._read_each(texts, is_real, priors)
        if self._config.answer_from == "token":
            return self._tokens(each, names)
        own_names = [names[owner] for owner in each.owners.tolist()] if names else ()
        return self._sequences(each, len(is_real), own_names)

    def _together(self, texts: TokenBatch, is_real: Tensor, priors: Tensor, names: Sequence[str]) -> list[Written]:
        bias = None
        if self._scores.passage_score_use == "bias":
            bias = self._scores.passage_score_weight * priors.masked_fill(~to_device(is_real, priors.device), 0)
        found = generate(self._reader.sources(texts, is_real, bias), self._config, self._tp_group, names).best
        return [Written(ids, score) for ids, score in zip(found.ids.tolist(), found.scores.tolist(), strict=True)]

    def _read_each(self, texts: TokenBatch, is_real: Tensor, priors: Tensor) -> _Each:
        rows = is_real.flatten().nonzero()[:, 0]
        sources = self._reader.sources(texts.rows(rows), is_real.new_ones(len(rows), 1))
        rows = to_device(rows, priors.device)
        num_texts = is_real.size(1)
        return _Each(sources, rows // num_texts, rows % num_texts, priors.flatten()[rows])

    def _sequences(self, each: _Each, num_questions: int, names: Sequence[str]) -> list[Written]:
        """RAG-Sequence: the answer with the highest sum of p(z | q) p(a | q, z), among those that the search of any
        passage found; fast decoding takes the terms of other passages as 0."""
        found = generate(each.sources, self._config, self._tp_group, names)
        lengths, owners, passages = found.lengths.tolist(), each.owners.tolist(), each.passages.tolist()
        scores = found.scores.masked_fill(found.lengths == 0, -torch.inf)
        likelihoods = each.priors[:, None] + scores * found.lengths.clamp(min=1) ** self._config.length_penalty
        candidates: list[list[Candidate]] = [[] for _ in range(num_questions)]
        for row, (answers, shares) in enumerate(zip(found.ids.tolist(), likelihoods.tolist(), strict=True)):
            for ids, length, share in zip(answers, lengths[row], shares, strict=True):
                if length:
                    candidates[owners[row]].append(Candidate(tuple(ids[:length]), share, passages[row]))
        fast = [
            _with_figures(likeliest(own), num_candidates=len({candidate.ids for candidate in own}))
            for own in candidates
        ]
        return fast if self._config.marginal_decoding == "fast" else self._thorough(each, candidates, fast)

    def _thorough(
        self, each: _Each, candidates: Sequence[Sequence[Candidate]], fast: Sequence[Written]
    ) -> list[Written]:
        """The likeliest of the candidates of all passages, by the likelihoods that every passage gives to each."""
        answers = [list(dict.fromkeys(candidate.ids for candidate in own)) for own in candidates]
        labels = _labels(answers, each.owners.device)[each.owners]
        shares = each.priors[:, None] + each.sources.token_log_likelihoods(labels).sum(2)
        scored: list[list[Candidate]] = [[] for _ in answers]
        for owner, passage, own in zip(each.owners.tolist(), each.passages.tolist(), shares.tolist(), strict=True):
            # rows of questions with fewer answers are longer
            scored[owner] += [Candidate(ids, share, passage) for ids, share in zip(answers[owner], own, strict=False)]
        return [
            _with_figures(best, **before.figures, differs_from_fast=best.ids != before.ids)
            for best, before in zip(map(likeliest, scored), fast, strict=True)
        ]

    def _tokens(self, each: _Each, names: Sequence[str]) -> list[Written]:
        """RAG-Token: one search over the mixture of the passages' next tokens."""
        mixed = MixedSources(each.sources, each.owners, each.priors, self._tp_group)
        found = generate(mixed, self._config, self._tp_group, names).best
        likelihoods = (found.scores * found.lengths**self._config.length_penalty).tolist()
        answers = [ids[:length] for ids, length in zip(found.ids.tolist(), found.lengths.tolist(), strict=True)]
        labels = _labels([[tuple(ids)] for ids in answers], each.owners.device)[each.owners]
        of_tokens = each.priors[:, None] + each.sources.token_log_likelihoods(labels)[:, 0]
        of_answers = each.priors + (of_tokens - each.priors[:, None]).sum(1)
        written = []
        for question, (ids, likelihood) in enumerate(zip(answers, likelihoods, strict=True)):
            rows = (each.owners == question).nonzero()[:, 0]
            used = of_tokens[rows, : len(ids)].argmax(0).unique()
            best = each.passages[rows[of_answers[rows].argmax()]]
            written.append(Written(ids, likelihood, int(best), {"num_passages_used": float(len(used))}))
        return written


def likeliest(candidates: Sequence[Candidate]) -> Written:
    """The answer by `likeliest_answer`; its score is the log of the sum."""
    ids, likelihoods = zip(*((candidate.ids, candidate.log_likelihood) for candidate in candidates), strict=True)
    place, score = likeliest_answer(ids, likelihoods)
    return Written(list(ids[place]), score, candidates[place].passage)


def _with_figures(written: Written, **figures: float) -> Written:
    return replace(written, figures={name: float(value) for name, value in figures.items()})


def _labels(answers: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Tensor:
    """[B, n, L] int64 token ids of up to n answers to each question, -1 behind them."""
    most, longest = max(map(len, answers)), max(len(ids) for own in answers for ids in own)
    labels = torch.full((len(answers), most, longest), -1)
    for row, own in zip(labels, answers, strict=True):
        for place, ids in enumerate(own):
            row[place, : len(ids)] = torch.tensor(ids)
    return to_device(labels, device)
