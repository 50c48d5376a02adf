"""Causal language models' `Sources`: prompts that are read once, and continued by any number of sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.models.answer_lines import AnswerLines, LineState
from megatron_retrieval.models.causal_lm import CausalLM
from megatron_retrieval.models.layer_inputs import TokenCache
from megatron_retrieval.models.prompt import Prompts
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy


@dataclass(frozen=True)
class PromptSources:
    """See `generation.Sources`.

    Attributes:
        model: in evaluation mode.
        prompts: see `CausalLM.read_prompts`.
        end_id: last token of every answer.
        lines: what else ends an answer; None: nothing does.
    """

    model: CausalLM
    prompts: Prompts
    end_id: int
    lines: AnswerLines | None = None

    @property
    def num_sources(self) -> int:
        """See Sources."""
        return len(self.prompts.lengths)

    @property
    def device(self) -> torch.device:
        """See Sources."""
        return self.prompts.device

    def start(self) -> PromptState:
        """See Sources."""
        return PromptState(self.model, self.prompts, self.lines)

    @torch.no_grad()
    def token_log_likelihoods(self, labels: Tensor) -> Tensor:
        """See Sources; token by token, so that the prompts are not read again."""
        _, num_answers, length = labels.shape
        rows, state = labels.flatten(0, 1), PromptState(self.model, self.prompts, self.lines, num_answers)
        found, newest = torch.zeros(rows.shape, device=self.device), None
        for column in range(length):
            own = rows[:, column]
            losses = vocab_parallel_cross_entropy(state.step(newest), own.clamp(min=0))
            found[:, column] = -losses.masked_fill(own < 0, 0)
            newest = own.clamp(min=0)[:, None]
        return found.view_as(labels)


class PromptState:
    """See `generation.GenerationState`.

    Args:
        lines: see PromptSources.
        num_answers: sequences of each prompt at the beginning.
    """

    def __init__(self, model: CausalLM, prompts: Prompts, lines: AnswerLines | None, num_answers: int = 1) -> None:
        self._model, self._prompts, self._cache = model, prompts, TokenCache()
        self._first = prompts.newest.repeat_interleave(num_answers)[:, None]
        self._lines = None if lines is None else LineState(lines, len(self._first))

    @torch.no_grad()
    def step(self, newest: Tensor | None) -> Tensor:
        """See GenerationState; the last token of a prompt is what it starts with."""
        ids = self._first if newest is None else newest
        logits = self._model.logits(self._model.stack.step(ids, self._prompts, self._cache))
        if self._lines is None:
            return logits
        if newest is not None:
            self._lines.write(newest[:, 0])
        return self._lines.fold(logits)

    def select(self, rows: Tensor | None, sources: Tensor | None) -> None:
        """See GenerationState."""
        self._prompts = self._prompts.select(sources)
        self._cache.select(rows)
        if self._lines is not None and rows is not None:
            self._lines.select(rows)
