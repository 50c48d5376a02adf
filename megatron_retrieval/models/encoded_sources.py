"""The encoder-decoders' `Sources`: encoded texts that answers are decoded from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_retrieval.models.layer_inputs import TokenCache
from megatron_retrieval.models.memory import Memory
from megatron_retrieval.models.multi_head_attention import CrossAttention
from megatron_retrieval.models.seq2seq import EncoderDecoder
from megatron_retrieval.models.t5 import shift_right
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy

#: tokens of given answers that are predicted at once, each with the logits of the whole vocabulary
MOST_TOKENS = 1024


@dataclass(frozen=True)
class EncodedSources:
    """See `generation.Sources`.

    Attributes:
        model: in evaluation mode.
        memory: the encoded sources, see `EncodedMemory`.
    """

    model: EncoderDecoder
    memory: Memory

    @property
    def num_sources(self) -> int:
        """See Sources."""
        return self.memory.num_sources

    @property
    def end_id(self) -> int:
        """See Sources."""
        return self.model.end_id

    @property
    def device(self) -> torch.device:
        """See Sources."""
        return self.memory.device

    def start(self) -> EncodedState:
        """See Sources."""
        return EncodedState(self.model, self.memory)

    @torch.no_grad()
    def token_log_likelihoods(self, labels: Tensor) -> Tensor:
        """See Sources."""
        num_sources, _, length = labels.shape
        size = max(1, MOST_TOKENS // max(1, num_sources * length))
        memory = _read_once(self.model, self.memory)
        parts = [self._score(part, memory) for part in labels.split(size, 1)]
        return torch.cat(parts, 1) if parts else torch.zeros(labels.shape, device=self.device)

    def _score(self, labels: Tensor, memory: Memory) -> Tensor:
        rows = labels.flatten(0, 1)
        places = (rows.flatten() >= 0).nonzero()[:, 0]
        states = self.model.decoder(shift_right(rows, self.model.start_id), memory)
        losses = vocab_parallel_cross_entropy(self.model.logits(states.flatten(0, 1)[places]), rows.flatten()[places])
        return torch.zeros(rows.numel(), device=self.device).index_copy(0, places, -losses).view_as(labels)


class EncodedState:
    """See `generation.GenerationState`."""

    def __init__(self, model: EncoderDecoder, memory: Memory) -> None:
        self._model, self._cache, self._memory = model, TokenCache(), _read_once(model, memory)

    def step(self, newest: Tensor | None) -> Tensor:
        """See GenerationState."""
        if newest is None:
            newest = torch.full((self._memory.num_sources, 1), self._model.start_id, device=self._memory.device)
        return self._model.logits(self._model.decoder(newest, self._memory, self._cache)[:, -1])

    def select(self, rows: Tensor | None, sources: Tensor | None) -> None:
        """See GenerationState."""
        self._memory = self._memory.select(rows, sources)
        self._cache.select(rows)


def _read_once(model: EncoderDecoder, memory: Memory) -> Memory:
    """The memory with the keys and values of all cross-attention."""
    return memory.precompute(part for part in model.decoder.modules() if isinstance(part, CrossAttention))
