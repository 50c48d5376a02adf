"""A causal language model as a reader: prompts with passages and question, which it continues with the answer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_retrieval.models.answer_lines import AnswerLines
from megatron_retrieval.models.causal_lm import CausalLM
from megatron_retrieval.models.prompt import Prompts
from megatron_retrieval.models.prompt_sources import PromptSources
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy, vocab_parallel_log_softmax
from megatron_retrieval.types.causal import continued
from megatron_retrieval.types.tokens import TokenBatch, by_length, to_device


class CausalReader(nn.Module):
    """Reads prompts; the output layer is computed where an answer's token is to be predicted, and nowhere else.

    Args:
        model: holds all parameters.
        end_id: last token of every answer.
        batch_size: prompts in one forward pass, grouped by length. Changes memory and speed, not the result.
        lines: what else ends an answer that is generated; None: nothing does.
    """

    def __init__(self, model: CausalLM, *, end_id: int, batch_size: int, lines: AnswerLines | None = None) -> None:
        super().__init__()
        self.model, self.end_id, self._batch_size, self._lines = model, end_id, batch_size, lines

    def score_each(self, prompts: TokenBatch, is_real: Tensor, labels: Tensor) -> Tensor:
        """log p(answer | prompt) of every prompt separately: the sums of `score_tokens` over the answer.

        Returns:
            [B, K] float32; -inf for fillers.
        """
        scores = self.score_tokens(prompts, is_real, labels).sum(2)
        return scores.masked_fill(~to_device(is_real, scores.device), -torch.inf)

    def score_tokens(self, prompts: TokenBatch, is_real: Tensor, labels: Tensor) -> Tensor:
        """log p(token | previous tokens, prompt) of every prompt separately.

        Args:
            prompts: B * K rows on the CPU, the K prompts of a question in consecutive rows.
            is_real: [B, K] bool on the CPU; fillers are not read.
            labels: [B, L] int64 on the CPU, each question's answer with its end token, padded with -1.

        Returns:
            [B, K, L] float32, equal on all tensor-parallel ranks; 0 at padding and for fillers.
        """
        scores = torch.zeros(is_real.numel() * labels.size(1), device=self.device)
        for logits, targets, slots in self._each_logits(prompts, is_real, labels):
            scores = scores.index_copy(0, slots, -vocab_parallel_cross_entropy(logits, targets))
        return scores.view(*is_real.shape, -1)

    def score_vocabulary(
        self, prompts: TokenBatch, is_real: Tensor, labels: Tensor, tp_group: dist.ProcessGroup
    ) -> Tensor:
        """log p(v | previous tokens, prompt) of every prompt separately, for every token v; see
        `FusionReader.score_vocabulary`."""
        found = [
            (vocab_parallel_log_softmax(logits, tp_group), slots)
            for logits, _, slots in self._each_logits(prompts, is_real, labels)
        ]
        parts, places = (torch.cat(column) for column in zip(*found, strict=True))
        scores = parts.new_zeros(is_real.numel() * labels.size(1), parts.size(1)).index_copy(0, places, parts)
        return scores.view(*is_real.shape, labels.size(1), -1)

    def _each_logits(
        self, prompts: TokenBatch, is_real: Tensor, labels: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of the answers' tokens behind batches of prompts: logits [M, V / tensor-parallel size], the tokens [M], and
        the places [M] of both among [B * K * L]."""
        device, num_labels = self.device, labels.size(1)
        real = is_real.flatten().nonzero()[:, 0]
        for index in by_length(prompts.lengths[real], self._batch_size) if len(real) else ():
            rows = real[index]
            own = labels[rows // is_real.size(1)]
            batch = continued(prompts.rows(rows), own)
            places = (batch.labels.flatten() >= 0).nonzero()[:, 0]
            owners, columns = (own >= 0).nonzero(as_tuple=True)
            slots = to_device(rows[owners] * num_labels + columns, device)
            targets = to_device(batch.labels.flatten()[places], device)
            yield self.logits(batch.tokens, to_device(places, device)), targets, slots

    def sources(self, prompts: TokenBatch, is_real: Tensor, passage_scores: Tensor | None = None) -> PromptSources:
        """Read one prompt for each of B questions, to continue it.

        Args:
            is_real: [B, 1], all True.

        Raises:
            ValueError: there are several prompts for a question, or scores, which have no place in them.
        """
        if passage_scores is not None or is_real.size(1) != 1 or not bool(is_real.all()):
            raise ValueError("a causal reader continues one prompt for each question, without scores")
        return PromptSources(self.model, self.read_prompts(prompts), self.end_id, self._lines)

    def logits(self, tokens: TokenBatch, places: Tensor) -> Tensor:
        """See `CausalLM.forward`."""
        logits: Tensor = self.model(tokens, places)
        return logits

    def read_prompts(self, prompts: TokenBatch) -> Prompts:
        """See CausalLM."""
        return self.model.read_prompts(prompts)

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(self.parameters()).device
