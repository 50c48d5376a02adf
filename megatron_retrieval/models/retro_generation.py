"""A RETRO's `Sources`: prompts that are continued token by token, with a search behind every full chunk.

Chunks are counted from the beginning of a sequence, in the prompt and behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_retrieval.models.layer_inputs import TokenCache
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.multi_head_attention import CrossAttention
from megatron_retrieval.models.retro import Retro
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy
from megatron_retrieval.types.neighbours import Neighbours
from megatron_retrieval.types.tokens import TokenBatch, to_device

#: [C, m] tokens of full chunks, on the CPU -> [C, k, r] tokens of their neighbours and [C, k] lengths, as `Neighbours`
Retrieve = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class RetroSources:
    """See `generation.Sources`.

    Attributes:
        model: in evaluation mode.
        prompts: [S, T] int64, all of one length, 1 or more.
        end_id: last token of every answer.
        retrieve: finds the neighbours of chunks; all tensor-parallel ranks must find the same. None: RETRO[OFF].
    """

    model: Retro
    prompts: Tensor
    end_id: int
    retrieve: Retrieve | None

    @property
    def num_sources(self) -> int:
        """See Sources."""
        return len(self.prompts)

    @property
    def device(self) -> torch.device:
        """See Sources."""
        device: torch.device = self.model.stack.embedding.weight.device
        return device

    def start(self) -> RetroState:
        """See Sources."""
        return RetroState(self.model, self.prompts, self.retrieve)

    @torch.no_grad()
    def token_log_likelihoods(self, labels: Tensor) -> Tensor:
        """See Sources."""
        _, num_answers, length = labels.shape
        rows, newest = labels.flatten(0, 1), None
        found = torch.zeros(rows.shape, device=self.device)
        state = replace(self, prompts=self.prompts.repeat_interleave(num_answers, 0)).start()
        for column in range(length):
            own = rows[:, column]
            losses = vocab_parallel_cross_entropy(state.step(newest), own.clamp(min=0))
            found[:, column] = -losses.masked_fill(own < 0, 0)
            newest = own.clamp(min=0)[:, None]
        return found.view_as(labels)


class RetroState:
    """See `generation.GenerationState`.

    What is kept of R sequences, all of one length: keys and values of their tokens; of the chunk that is not full yet
    the tokens and the states in the first layer that reads; of the last full chunk's neighbours the keys and values for
    every layer that reads.
    """

    def __init__(self, model: Retro, prompts: Tensor, retrieve: Retrieve | None) -> None:
        self._model, self._retrieve, self._cache = model, retrieve, TokenCache()
        self._stack, self._length = model.stack, model.config.retro_chunk_length
        self._readers = [m for m in self._stack.decoder.modules() if isinstance(m, CrossAttention)]
        self._newest = prompts[:, -1:]
        self._tokens = prompts[:, :0]
        self._states = torch.zeros(0)
        self._memory: EncodedMemory | None = None
        self._lengths, self._width = torch.zeros(len(prompts), 0, dtype=torch.int64), 0
        if prompts.size(1) > 1:
            self._read_prompts(prompts[:, :-1])

    @torch.no_grad()
    def _read_prompts(self, ids: Tensor) -> None:
        """[S, T]: all of it in one pass."""
        num_texts, num_tokens = ids.shape
        num_chunks, rest = divmod(num_tokens, self._length)
        texts = torch.arange(num_texts).repeat_interleave(num_chunks)
        starts = (torch.arange(num_chunks) * self._length).repeat(num_texts)
        neighbours = None
        if self._retrieve is not None and num_chunks:
            full = ids[:, : num_tokens - rest].reshape(-1, self._length)
            neighbours = Neighbours(*self._retrieve(full.cpu()), texts, starts)
        batch = TokenBatch(ids, torch.full((num_texts,), num_tokens))
        packed, _, inputs = self._stack.prepared(batch, self._cache)
        states = self._stack.run_below(packed, inputs)
        memory = self._stack.memory(states[:, 0], batch.lengths, neighbours)
        self._stack.run_above(states, replace(inputs, memory=memory))  # the layers' keys and values go to the cache
        by_text = states[:, 0].unflatten(0, (num_texts, num_tokens))
        self._tokens, self._states = ids[:, num_tokens - rest :], by_text[:, num_tokens - rest :]
        if neighbours is not None:
            last = by_text[:, num_tokens - rest - self._length : num_tokens - rest]
            self._encode(neighbours.rows(starts == num_tokens - rest - self._length), last)

    @torch.no_grad()
    def step(self, newest: Tensor | None) -> Tensor:
        """See GenerationState; the last token of a prompt is what it starts with."""
        ids = to_device(self._newest if newest is None else newest, self._stack.embedding.weight.device)
        place, inputs = self._cache.num_tokens, self._stack.prepared_token(self._cache)
        states = self._stack.run_below(ids.t(), inputs)
        self._keep(ids, states[0])
        memory = None
        if self._memory is not None:
            slot = (place + 1) % self._length
            bias = self._stack.reading_bias(self._lengths, self._width, self._length - 1 + slot, 1)
            memory = replace(self._memory, bias=bias)
        return self._model.logits(self._stack.run_above(states, replace(inputs, memory=memory))[0])

    def select(self, rows: Tensor | None, sources: Tensor | None) -> None:
        """See GenerationState."""
        if rows is None:
            return
        self._cache.select(rows)
        self._tokens, self._states = self._tokens[rows], self._states[rows]
        if self._memory is not None:
            self._memory, self._lengths = self._memory.select(None, rows), self._lengths[rows.cpu()]

    def _keep(self, ids: Tensor, states: Tensor) -> None:
        """Take the newest tokens, [R, 1] and [R, D]; if they end a chunk, its neighbours are read from now on."""
        is_first = not self._tokens.size(1)
        self._tokens = ids if is_first else torch.cat([self._tokens, ids], 1)
        self._states = states[:, None] if is_first else torch.cat([self._states, states[:, None]], 1)
        if self._tokens.size(1) == self._length:
            if self._retrieve is not None:
                numbers = torch.arange(len(ids))
                found = Neighbours(*self._retrieve(self._tokens.cpu()), numbers, torch.zeros_like(numbers))
                self._encode(found, self._states)
            self._tokens, self._states = ids[:, :0], states[:, None][:, :0]

    def _encode(self, neighbours: Neighbours, states: Tensor) -> None:
        """Let the next tokens read what was found for the last full chunk of every sequence, [R, m, D]."""
        self._lengths, self._memory, self._width = neighbours.lengths, None, int(neighbours.lengths.max())
        if len(self._stack.read_of(neighbours)):
            encoded = self._stack.neighbour_encoder(neighbours, states, self._stack.embedding)
            self._memory = EncodedMemory(encoded).precompute(self._readers)
