"""The state of beam search: open sequences, finished answers, and questions that are done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: padding of answers
PAD_ID = 0


@dataclass(frozen=True)
class Generated:
    """Answers of B questions.

    Attributes:
        ids: [B, L] int64, with the end token unless the answer reached the limit, padded with `PAD_ID`.
        lengths: [B] int64, tokens of each answer with the end token.
        scores: [B] float32, log-likelihood / length ** length penalty.
    """

    ids: Tensor
    lengths: Tensor
    scores: Tensor


class BestTokens(NamedTuple):
    """Candidates for the next token of R rows.

    Attributes:
        ids: [R, k] int64.
        log_likelihoods: [R, k] float32, descending; equal ones are ordered by id.
    """

    ids: Tensor
    log_likelihoods: Tensor


class Survivors(NamedTuple):
    """The sequences of the open questions after a step.

    Attributes:
        tokens: [R, 1] int64, the newest token of each.
        rows: [R] int64, index of the previous step's row that each continues; None where no row moves.
        sources: [b] int64, indices of the open questions among those open before; None where all stay open.
    """

    tokens: Tensor
    rows: Tensor | None
    sources: Tensor | None


class Beams:
    """The beams of a batch of questions.

    Finished answers are ranked by log-likelihood / length ** penalty. A question is done when it has as many of them as
    beams and its likeliest open sequence, at its present length, scores no higher than the last of them (the rule of
    Hugging Face); with `stop_at_first`, as soon as it has as many. Equal scores are ordered by beam, then by token id.

    Args:
        max_length: of an answer in tokens with the end token; sequences of this length are finished.
    """

    def __init__(
        self,
        num_questions: int,
        *,
        num_beams: int,
        max_length: int,
        length_penalty: float,
        stop_at_first: bool,
        end_id: int,
        device: torch.device,
    ) -> None:
        self._num_beams, self._max_length, self._end_id = num_beams, max_length, end_id
        self._length_penalty, self._stop_at_first = length_penalty, stop_at_first
        # of all questions
        self._ids = torch.full((num_questions, max_length), PAD_ID, device=device)
        self._lengths = torch.zeros(num_questions, dtype=torch.int64, device=device)
        self._best = torch.full((num_questions,), -torch.inf, device=device)
        # of the open questions: indices, sequences, log-likelihoods and scores of finished answers; each starts with
        # one empty sequence
        self._open = torch.arange(num_questions, device=device)
        self._tokens = torch.zeros(num_questions, 1, 0, dtype=torch.int64, device=device)
        self._likelihoods = torch.zeros(num_questions, 1, device=device)
        self._finished = torch.full((num_questions, num_beams), -torch.inf, device=device)

    @property
    def num_tokens(self) -> int:
        """Tokens of every open sequence."""
        return self._tokens.size(2)

    def advance(self, candidates: BestTokens) -> Survivors:
        """Extend all sequences by one token.

        Args:
            candidates: the 2 * `num_beams` likeliest next tokens of every row.
        """
        num_open, num_rows, length = len(self._open), self._tokens.size(1), self.num_tokens + 1
        num_candidates = candidates.ids.size(1)
        likelihoods = self._likelihoods[:, :, None] + candidates.log_likelihoods.view(num_open, num_rows, -1)
        likelihoods, order = likelihoods.flatten(1).sort(dim=1, descending=True, stable=True)
        order = order[:, : 2 * self._num_beams]
        likelihoods, beams = likelihoods[:, : 2 * self._num_beams], order // num_candidates
        newest = candidates.ids.view(num_open, -1).gather(1, order)
        tokens = torch.cat([_rows(self._tokens, beams), newest[:, :, None]], 2)
        is_end = (newest == self._end_id) | (length == self._max_length)
        self._finish(tokens, likelihoods, is_end)

        going_on = is_end.int().argsort(dim=1, stable=True)[:, : self._num_beams]
        likelihoods, beams = likelihoods.gather(1, going_on), beams.gather(1, going_on)
        is_open = self._stays_open(likelihoods[:, 0], length)
        rows = beams + torch.arange(num_open, device=beams.device)[:, None] * num_rows
        self._tokens, self._likelihoods = _rows(tokens, going_on)[is_open], likelihoods[is_open]
        self._open, self._finished = self._open[is_open], self._finished[is_open]
        return self._survivors(rows[is_open].flatten(), is_open, num_open * num_rows)

    def result(self) -> Generated:
        """The best answer of every question."""
        longest = int(self._lengths.max()) if len(self._lengths) else 0
        return Generated(self._ids[:, :longest], self._lengths, self._best)

    def _finish(self, tokens: Tensor, likelihoods: Tensor, is_end: Tensor) -> None:
        """Record the answers among the `num_beams` likeliest of the sequences [b, 2 * num_beams, L]."""
        length, num_beams = tokens.size(2), self._num_beams
        scores = (likelihoods / length**self._length_penalty).masked_fill(~is_end, -torch.inf)[:, :num_beams]
        best, place = scores.max(1)
        is_better = best > self._best[self._open]
        improved = self._open[is_better]
        self._best[improved], self._lengths[improved] = best[is_better], length
        self._ids[improved] = PAD_ID
        self._ids[improved, :length] = _rows(tokens, place[:, None])[is_better, 0]
        self._finished = torch.cat([self._finished, scores], 1).topk(num_beams).values

    def _stays_open(self, likelihoods: Tensor, length: int) -> Tensor:
        """[b] bool, whether a question stays open, given the log-likelihood of its best open sequence."""
        if length == self._max_length:
            return torch.zeros_like(likelihoods, dtype=torch.bool)
        last = self._finished[:, -1]
        is_full = last > -torch.inf
        if self._stop_at_first:
            return ~is_full
        return ~is_full | (likelihoods / length**self._length_penalty > last)

    def _survivors(self, rows: Tensor, is_open: Tensor, num_rows_before: int) -> Survivors:
        tokens = self._tokens[:, :, -1].reshape(-1, 1)
        sources = None if bool(is_open.all()) else is_open.nonzero()[:, 0]
        stays = len(rows) == num_rows_before and torch.equal(rows, torch.arange(len(rows), device=rows.device))
        return Survivors(tokens, None if stays else rows, sources)


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """values[b, places[b, i]]: [b, n, L] and [b, m] -> [b, m, L]."""
    return values.take_along_dim(places[:, :, None], 1)
