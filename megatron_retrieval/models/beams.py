"""The state of beam search: open sequences, finished answers, and questions that are done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

#: padding of answers
PAD_ID = 0


@dataclass(frozen=True)
class Generated:
    """The n best answers to each of B questions, best first, or the best of each, without the dimension n.

    Attributes:
        ids: [B, n, L] int64, with the end token unless the answer reached the limit, padded with `PAD_ID`.
        lengths: [B, n] int64, tokens of each answer with the end token; 0 where there are fewer answers.
        scores: [B, n] float32, log-likelihood / length ** length penalty; -inf where there are fewer answers.
    """

    ids: Tensor
    lengths: Tensor
    scores: Tensor

    @property
    def best(self) -> Generated:
        """The best answer to each question: [B, L], [B] and [B]."""
        lengths = self.lengths[:, 0]
        longest = int(lengths.max()) if len(lengths) else 0
        return Generated(self.ids[:, 0, :longest], lengths, self.scores[:, 0])


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

    Attributes:
        open_questions: [b] int64, indices of the questions that are not done.
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
        # finished answers of all questions, best first
        self._ids = torch.full((num_questions, num_beams, max_length), PAD_ID, device=device)
        self._lengths = torch.zeros(num_questions, num_beams, dtype=torch.int64, device=device)
        self._scores = torch.full((num_questions, num_beams), -torch.inf, device=device)
        # of the open questions: indices, sequences and log-likelihoods; each starts with one empty sequence
        self.open_questions = torch.arange(num_questions, device=device)
        self._tokens = torch.zeros(num_questions, 1, 0, dtype=torch.int64, device=device)
        self._likelihoods = torch.zeros(num_questions, 1, device=device)

    @property
    def num_open(self) -> int:
        """Questions that are not done."""
        return len(self.open_questions)

    @property
    def num_tokens(self) -> int:
        """Tokens of every open sequence."""
        return self._tokens.size(2)

    def advance(self, candidates: BestTokens) -> Survivors:
        """Extend all sequences by one token.

        Args:
            candidates: the 2 * `num_beams` likeliest next tokens of every row; where there are fewer, all of them, or
                the one that was drawn.
        """
        num_open, num_rows, length = self.num_open, self._tokens.size(1), self.num_tokens + 1
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
        # a small vocabulary may have too few tokens to go on with: nothing follows an end
        likelihoods = likelihoods.masked_fill(is_end, -torch.inf).gather(1, going_on)
        beams = beams.gather(1, going_on)
        is_open = self._stays_open(likelihoods[:, 0], length)
        rows = beams + torch.arange(num_open, device=beams.device)[:, None] * num_rows
        self._tokens, self._likelihoods = _rows(tokens, going_on)[is_open], likelihoods[is_open]
        self.open_questions = self.open_questions[is_open]
        return self._survivors(rows[is_open].flatten(), is_open, num_open * num_rows)

    def result(self) -> Generated:
        """The best answers of every question."""
        longest = int(self._lengths.max()) if self._lengths.numel() else 0
        return Generated(self._ids[:, :, :longest], self._lengths, self._scores)

    def _finish(self, tokens: Tensor, likelihoods: Tensor, is_end: Tensor) -> None:
        """Record the answers among the `num_beams` likeliest of the sequences [b, 2 * num_beams, L]."""
        length, num_beams, questions = tokens.size(2), self._num_beams, self.open_questions
        scores = (likelihoods / length**self._length_penalty).masked_fill(~is_end, -torch.inf)[:, :num_beams]
        padded = F.pad(tokens[:, :num_beams], (0, self._max_length - length), value=PAD_ID)
        lengths = torch.where(scores > -torch.inf, length, 0)
        # of equal scores, the answer that was finished earlier comes first
        best, order = torch.cat([self._scores[questions], scores], 1).sort(dim=1, descending=True, stable=True)
        order = order[:, :num_beams]
        self._scores[questions] = best[:, :num_beams]
        self._lengths[questions] = torch.cat([self._lengths[questions], lengths], 1).gather(1, order)
        self._ids[questions] = _rows(torch.cat([self._ids[questions], padded], 1), order)

    def _stays_open(self, likelihoods: Tensor, length: int) -> Tensor:
        """[b] bool, whether a question stays open, given the log-likelihood of its best open sequence."""
        if length == self._max_length:
            return torch.zeros_like(likelihoods, dtype=torch.bool)
        last = self._scores[self.open_questions, -1]
        is_empty, can_go_on = last == -torch.inf, likelihoods > -torch.inf
        if self._stop_at_first:
            return is_empty & can_go_on
        return can_go_on & (is_empty | (likelihoods / length**self._length_penalty > last))

    def _survivors(self, rows: Tensor, is_open: Tensor, num_rows_before: int) -> Survivors:
        tokens = self._tokens[:, :, -1].reshape(-1, 1)
        sources = None if bool(is_open.all()) else is_open.nonzero()[:, 0]
        stays = len(rows) == num_rows_before and torch.equal(rows, torch.arange(len(rows), device=rows.device))
        return Survivors(tokens, None if stays else rows, sources)


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """values[b, places[b, i]]: [b, n, L] and [b, m] -> [b, m, L]."""
    return values.take_along_dim(places[:, :, None], 1)
