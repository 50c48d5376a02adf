"""A RETRO as a reader: a question that ends a chunk, passages as this chunk's neighbours, the answer in the next one
(Borgeaud et al. 2022, arXiv 2112.04426, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from megatron_retrieval.models.causal_reader import CausalReader
from megatron_retrieval.models.layer_inputs import TokenCache
from megatron_retrieval.models.memory import EncodedMemory, by_head
from megatron_retrieval.models.multi_head_attention import CrossAttention
from megatron_retrieval.models.prompt import Prompts
from megatron_retrieval.models.retro import Retro, RetroStack
from megatron_retrieval.types.neighbours import NeighbouredTexts
from megatron_retrieval.types.tokens import TokenBatch, to_device


@dataclass(frozen=True)
class NeighbouredPrompts(Prompts):
    """See Prompts; the last token of each ends a chunk, and is the first to read the chunk's neighbours.

    Attributes:
        stack: that has read them.
        memory: the neighbours' keys and values, zeros for prompts without; None: no prompt has any.
        num_tokens: [B, k] of each neighbour, on the CPU.
        width: to which they are padded.
    """

    stack: RetroStack
    memory: EncodedMemory | None
    num_tokens: Tensor
    width: int

    def memory_at(self, place: int) -> EncodedMemory | None:
        """See Prompts; the place is a slot of the neighbours' readers."""
        if self.memory is None:
            return None
        first = self.stack.config.retro_chunk_length - 1 + place
        return replace(self.memory, bias=self.stack.reading_bias(self.num_tokens, self.width, first, 1))

    def select(self, sources: Tensor | None) -> Self:
        """See Prompts."""
        if sources is None:
            return self
        memory = None if self.memory is None else self.memory.select(None, sources)
        kept = super().select(sources)
        return replace(kept, memory=memory, num_tokens=self.num_tokens[sources.cpu()])


class RetroReader(CausalReader):
    """See CausalReader; its prompts are `NeighbouredTexts`, each of which ends with the chunk that has neighbours.

    Args:
        model: a `Retro`.
    """

    model: Retro

    def logits(self, tokens: TokenBatch, places: Tensor) -> Tensor:
        """See CausalReader."""
        assert isinstance(tokens, NeighbouredTexts)
        logits: Tensor = self.model(tokens, places, tokens.neighbours)
        return logits

    @torch.no_grad()
    def read_prompts(self, prompts: TokenBatch) -> NeighbouredPrompts:
        """See CausalReader; the last token is read here for the chunk's sake, and again where generation begins."""
        assert isinstance(prompts, NeighbouredTexts)
        stack, cache = self.model.stack, TokenCache()
        neighbours = stack.read_of(prompts.neighbours)
        ids, _, inputs = stack.prepared(prompts, cache)
        states = stack.run_below(ids, inputs)
        placed = stack.memory(states[:, 0], prompts.lengths, neighbours)
        stack.run_above(states, replace(inputs, memory=placed))
        lengths = prompts.lengths - 1
        longest = int(lengths.max())
        computed = {
            attention: by_head(*(part[:longest] for part in parts)) for attention, parts in cache.computed.items()
        }
        num_tokens = neighbours.lengths.new_zeros(len(prompts), neighbours.lengths.size(1))
        num_tokens[neighbours.texts] = neighbours.lengths
        memory = None
        if placed is not None:
            found = placed.encoded.states
            texts = to_device(neighbours.texts, found.device)
            every = found.new_zeros(len(prompts), *found.shape[1:]).index_copy(0, texts, found)
            readers = [module for module in stack.decoder.modules() if isinstance(module, CrossAttention)]
            memory = EncodedMemory(every).precompute(readers)
            assert memory.computed is not None
            # a question that was not searched for reads nothing, not even a null key
            is_read = found.new_zeros(len(prompts)).index_fill(0, texts, 1.0)[:, None, None]
            kept = {module: by_head(key, value * is_read) for module, (key, value) in memory.computed.items()}
            memory = replace(memory, computed=kept)
        return NeighbouredPrompts(
            computed,
            to_device(lengths, self.device),
            to_device(prompts.ids.gather(1, lengths[:, None])[:, 0], self.device),
            is_padded=bool((lengths < longest).any()),
            longest=longest,
            stack=stack,
            memory=memory,
            num_tokens=num_tokens,
            width=int(neighbours.lengths.max()) if len(neighbours) else 0,
        )
