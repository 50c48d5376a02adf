"""A memory of another kind, written outside of the package, goes through the layers of a decoder as they are: chunks of
the sequence that read sources of their own (RETRO, arXiv 2112.04426, section 2.4), beside the states of an encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.models.layer_inputs import LayerInputs, TokenCache
from megatron_retrieval.models.layers import Layer, Part, norm
from megatron_retrieval.models.memory import CrossAttending, EncodedMemory, Memory
from megatron_retrieval.models.multi_head_attention import CrossAttention
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config, t5_engine_config
from megatron_retrieval.parallel.megatron_compat import seed_dropout
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks

CHUNK, NUM_CHUNKS, NUM_TOKENS, NUM_ROWS, NUM_KEYS = 4, 2, 11, 3, 5
CONFIG = T5Config(
    num_layers=2, hidden_size=32, num_attention_heads=4, ffn_hidden_size=64, vocab_size=50, hidden_dropout=0.0
)


@dataclasses.dataclass(frozen=True)
class ChunkedMemory:
    """The token at t reads source (t + 1) // CHUNK - 1 of its sequence, those before CHUNK - 1 none.

    Attributes:
        states: [R * l, T, D], the sources of R sequences' l chunks.
        bias: [1, 1, CHUNK, T] for the place of the query within its chunk.
        first: position of the first query.
    """

    states: Tensor
    bias: Tensor
    first: int = 0

    num_sources, device = NUM_ROWS, torch.device("cpu")

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.states, self.bias

    def with_tensors(self, tensors: Sequence[Any]) -> ChunkedMemory:
        states, bias = tensors
        return dataclasses.replace(self, states=states, bias=bias)

    def for_rank(self, tp_group: dist.ProcessGroup) -> ChunkedMemory:
        return dataclasses.replace(self, bias=EncodedMemory(self.states, self.bias).for_rank(tp_group).bias)

    def read(self, attention: CrossAttending, query: Tensor) -> Tensor:
        length, num_rows = query.shape[:2]
        before = self.first + 1 - CHUNK  # of the first query within the grid of chunks, which starts at CHUNK - 1
        stop = CHUNK * NUM_CHUNKS
        inside = F.pad(query, (0, 0, 0, 0, 0, 0, before, stop - before - length))
        folded = inside.unflatten(0, (NUM_CHUNKS, CHUNK)).permute(1, 2, 0, 3, 4).flatten(1, 2)
        key, value = attention.keys_and_values(self.states)
        attended = attention.core_attention(folded, key, value, self.bias)
        unfolded = attended.unflatten(1, (num_rows, NUM_CHUNKS)).permute(2, 0, 1, 3).flatten(0, 1)
        return F.pad(unfolded, (0, 0, 0, 0, -before, before + length - stop))

    def precompute(self, attentions: Iterable[CrossAttending]) -> ChunkedMemory:
        return self

    def select(self, rows: Tensor | None, sources: Tensor | None) -> ChunkedMemory:
        if rows is None:
            return self
        states = self.states.unflatten(0, (-1, NUM_CHUNKS))[rows].flatten(0, 1)
        return dataclasses.replace(self, states=states)


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _memory(*, requires_grad: bool = False) -> ChunkedMemory:
    """The bias differs between the heads' queries, but is the same for all heads."""
    states, bias = _random(NUM_ROWS * NUM_CHUNKS, NUM_KEYS, 32, seed=1), _random(1, 1, CHUNK, NUM_KEYS, seed=2)
    return ChunkedMemory(states.requires_grad_(requires_grad), bias.requires_grad_(requires_grad))


def _ids() -> Tensor:
    return torch.randint(2, 50, (NUM_ROWS, NUM_TOKENS), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def _changes(topology: ProcessTopology) -> dict[str, Any]:
    """Which places change with each source, and what the tokens give one after the other."""
    model, memory = T5(CONFIG, topology, seed=4).eval(), _memory()
    whole = model.decoder(_ids(), memory)
    changed = []
    for chunk in range(NUM_CHUNKS):
        states = memory.states.clone()
        states[chunk::NUM_CHUNKS] += 1
        others = model.decoder(_ids(), dataclasses.replace(memory, states=states))
        changed.append((others != whole).any(2).all(0).nonzero()[:, 0].tolist())
    cache, rows = TokenCache(), torch.tensor([2, 0, 0])
    steps = [model.decoder(_ids()[:, :6], memory, cache)]
    cache.select(rows)
    kept = memory.select(rows, None)
    for place in range(6, NUM_TOKENS):
        own = dataclasses.replace(kept, first=place)
        steps.append(model.decoder(_ids()[rows, place : place + 1], own, cache))
    return {"changed": changed, "whole": whole[rows], "steps": torch.cat([steps[0][rows], *steps[1:]], 1)}


def test_chunks_read_their_sources_at_once_and_token_by_token() -> None:
    (found,) = run_on_ranks(_changes, 1)
    assert found["changed"] == [list(range(CHUNK - 1, NUM_TOKENS)), list(range(2 * CHUNK - 1, NUM_TOKENS))]
    torch.testing.assert_close(found["steps"], found["whole"], rtol=0, atol=1e-5)


def _gradients(topology: ProcessTopology, recompute: str, dropout: float) -> dict[str, Tensor]:
    config = dataclasses.replace(CONFIG, recompute_granularity=recompute, attention_dropout=dropout)
    model, memory = T5(config, topology, seed=4).train(), _memory(requires_grad=True)
    seed_dropout(7, topology.tp_rank)
    model.decoder(_ids(), memory).logsumexp(2).sum().backward()
    gradients = {name: gather_full(p, topology, p.grad) for name, p in model.decoder.named_parameters()}
    return {"states": memory.states.grad, "bias": memory.bias.grad, **gradients}


@pytest.mark.parametrize("tp_size", [1, 2])
def test_recomputed_layers_pass_gradients_to_the_memory(tp_size: int) -> None:
    for dropout in (0.0, 0.2):
        plain, recomputed = (
            run_on_ranks(_gradients, tp_size, form, dropout, tensor_model_parallel_size=tp_size)
            for form in ("none", "full")
        )
        (one,) = run_on_ranks(_gradients, 1, "none", 0.0)
        for name, gradient in one.items():
            for without, with_recompute in zip(plain, recomputed, strict=True):
                torch.testing.assert_close(with_recompute[name], without[name], rtol=1e-4, atol=1e-5, msg=name)
                if not dropout:
                    torch.testing.assert_close(without[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
            assert gradient.abs().max() > 1e-3, name


@dataclasses.dataclass(frozen=True)
class TwoMemories:
    """Another memory for one of the attention modules."""

    memory: Memory
    other: Memory
    reader_of_other: CrossAttending

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)

    def read(self, attention: CrossAttending, query: Tensor) -> Tensor:
        return (self.other if attention is self.reader_of_other else self.memory).read(attention, query)


@torch.no_grad()
def _two_memories(topology: ProcessTopology) -> bool:
    """A layer of two cross-attentions, each with a memory of its own, is the sum of its parts."""
    engine = t5_engine_config(CONFIG, topology.tp_size, torch.float32)
    first, second = (CrossAttention(engine, topology.groups) for _ in range(2))
    for seed, weight in enumerate([*first.parameters(), *second.parameters()]):
        weight.copy_(_random(*weight.shape, seed=10 + seed).mul(0.2))
    texts = EncodedMemory(_random(NUM_ROWS, 6, 32, seed=5))
    chunks = _memory()
    parts = [
        Part("to_texts", first, "norm_of_texts", norm(engine), "before"),
        Part("to_chunks", second, "norm_of_chunks", norm(engine), "after"),
    ]
    layer, states = Layer(parts, dropout=0.0).eval(), _random(NUM_TOKENS, NUM_ROWS, 32, seed=6)
    assert {name.rpartition(".")[0] for name, _ in layer.named_parameters()} >= {"norm_of_texts", "to_chunks.linear_q"}
    found = layer(states, LayerInputs(memory=TwoMemories(texts, chunks, second)))
    middle = states + first(layer.norm_of_texts(states), LayerInputs(memory=texts))
    assert torch.equal(found, layer.norm_of_chunks(middle + second(middle, LayerInputs(memory=chunks))))
    return True


def test_any_number_of_cross_attentions() -> None:
    assert run_on_ranks(_two_memories, 1) == [True]
