"""Which tokens read which neighbours, to the exact set of positions, and that nothing else of them matters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_retrieval.applications.plan.retro_costs import causal_parameters, retro_parameters, token_products
from megatron_retrieval.models.causal_lm import CausalConfig, CausalLM
from megatron_retrieval.models.chunked_attention import (
    ChunkedCrossAttention,
    PlacedMemory,
    packed_positions,
    reading_positions,
)
from megatron_retrieval.models.engine import engine_config
from megatron_retrieval.models.exact_bias import ExactBias
from megatron_retrieval.models.layer_inputs import LayerInputs
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.retro import Retro, RetroConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.types.neighbours import Neighbours
from megatron_retrieval.types.tokens import TokenBatch

M, K, R, V = 4, 2, 8, 128
SHAPE = RetroConfig(
    num_layers=6,
    hidden_size=32,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=48,
    max_position_embeddings=64,
    vocab_size=V,
    init_method_std=0.3,
    retro_chunk_length=M,
    retro_cca_init="normal",
    retro_encoder_hidden_dropout=0.0,
    retro_encoder_attention_dropout=0.0,
)
#: the chunk whose neighbours each token reads, and its slot, of the first twelve tokens
INDEX = [None, None, None, (0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]


@pytest.fixture(scope="module")
def topology() -> Iterator[ProcessTopology]:
    with process_topology(ParallelConfig(device="cpu")) as found:
        yield found


def make_model(topology: ProcessTopology, shape: RetroConfig = SHAPE, dtype: torch.dtype = torch.float64) -> Retro:
    model = Retro(shape, topology, dtype, seed=4).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # distances count
        for name, parameter in model.named_parameters():
            if "relative_bias" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def make_texts(num_tokens: int, num_neighbours: int = K) -> tuple[TokenBatch, Neighbours]:
    """One text and the neighbours of all its full chunks; some have no continuation."""
    generator, num_chunks = torch.Generator().manual_seed(num_tokens), num_tokens // M
    ids = torch.randint(V, (1, num_tokens), generator=generator)
    found = torch.randint(V, (num_chunks, num_neighbours, R), generator=generator)
    lengths = torch.tensor([R, M + 1, R - 1]).repeat(num_chunks)[: num_chunks * num_neighbours]
    neighbours = Neighbours(
        found,
        lengths.view(num_chunks, num_neighbours),
        torch.zeros(num_chunks, dtype=torch.int64),
        torch.arange(num_chunks) * M,
    )
    return TokenBatch(ids, torch.tensor([num_tokens])), neighbours


@torch.no_grad()
def _states(model: Retro, tokens: TokenBatch, neighbours: Neighbours | None) -> Tensor:
    return model.stack.read(tokens, neighbours=neighbours)[0]


def _changed(before: Tensor, after: Tensor) -> set[int]:
    return set((before != after).any(1).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("num_tokens", range(1, 14))
def test_tokens_read_the_chunk_before(num_tokens: int) -> None:
    num_chunks, lengths = num_tokens // M, torch.tensor([num_tokens])
    starts = torch.arange(num_chunks) * M
    places = packed_positions(reading_positions(starts, M), torch.zeros_like(starts), lengths)
    found: list[Any] = [None] * (num_tokens + 1)
    for slot, chunk in ((slot, chunk) for slot in range(M) for chunk in range(num_chunks)):
        found[int(places[slot, chunk])] = (chunk, slot)
    expected = (*INDEX, (2, 1))[:num_tokens]
    assert found[:num_tokens] == [place if place is None or place[0] < num_chunks else None for place in expected]


def _of_width_1() -> TransformerConfig:
    shape = {"num_layers": 1, "hidden_size": 1, "kv_channels": 1, "add_bias_linear": False}
    return engine_config(tp_size=1, dtype=torch.float64, num_attention_heads=1, ffn_hidden_size=1, **shape)


@pytest.mark.parametrize(
    ("of_distance_1", "expected"),
    [(0.0, [1, 2.880797, -0.731059, 4.999630]), (math.log(2), [1, 2.786986, -0.576117, 4.999815])],
)
def test_attention_by_hand(topology: ProcessTopology, of_distance_1: float, expected: list[float]) -> None:
    attention = ChunkedCrossAttention(_of_width_1(), topology.groups, is_gated=False).eval()
    for parameter in attention.parameters():
        parameter.data.fill_(1.0)
    table = ExactBias(lowest=0, highest=2, num_heads=1).double()
    table.weight.data[1] = of_distance_1
    states = torch.tensor([1.0, 2, -1, 3], dtype=torch.float64)[:, None, None]
    encoded = torch.tensor([[0.0, 1], [2, -1]], dtype=torch.float64)[..., None]
    starts, length = torch.tensor([0, 2]), torch.tensor([4])
    places = packed_positions(reading_positions(starts, 2), torch.zeros_like(starts), length)
    memory = PlacedMemory(EncodedMemory(encoded, table(2, 2, 1)), places)
    found = states + attention(states, LayerInputs(memory=memory))
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def test_distances_by_hand() -> None:
    table = ExactBias(lowest=-4, highest=6, num_heads=1)
    table.weight.data = torch.arange(-4.0, 7)[:, None]
    assert table(4, 5, 3)[0, 0].tolist() == [
        [3, 2, 1, 0, -1],
        [4, 3, 2, 1, 0],
        [5, 4, 3, 2, 1],
        [6, 5, 4, 3, 2],
    ]


@pytest.mark.parametrize("num_tokens", range(9, 14))
def test_what_a_change_reaches(topology: ProcessTopology, num_tokens: int) -> None:
    model = make_model(topology)
    tokens, neighbours = make_texts(num_tokens)
    before = _states(model, tokens, neighbours)
    for chunk in range(num_tokens // M):
        ids = neighbours.ids.clone()
        ids[chunk, 1, 2] = (ids[chunk, 1, 2] + 1) % V
        after = _states(model, tokens, dataclasses.replace(neighbours, ids=ids))
        assert _changed(before, after) == set(range((chunk + 1) * M - 1, num_tokens))
    for place in range(num_tokens):
        ids = tokens.ids.clone()
        ids[0, place] = (ids[0, place] + 1) % V
        after = _states(model, TokenBatch(ids, tokens.lengths), neighbours)
        assert _changed(before, after) == set(range(place, num_tokens))


def test_where_gradients_of_neighbours_come_from(topology: ProcessTopology) -> None:
    model, (tokens, neighbours) = make_model(topology), make_texts(13)
    embedded: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.stack.embedding.register_forward_hook(keep)
    owners = torch.arange(3).repeat_interleave(neighbours.lengths.sum(1))
    for place in range(13):
        embedded.clear()
        model.stack.read(tokens, neighbours=neighbours)[0][place].sum().backward()
        gradient = embedded[1].grad
        reached = set() if gradient is None else set(owners[gradient[:, 0].abs().sum(1) > 0].tolist())
        assert reached == {chunk for chunk in range(3) if (chunk + 1) * M - 1 <= place}


def test_what_does_not_matter(topology: ProcessTopology) -> None:
    """The order of neighbours, what stands in padding, and slots without a neighbour."""
    model, (tokens, neighbours) = make_model(topology), make_texts(13)
    before = _states(model, tokens, neighbours)

    def require_equal(**changes: Tensor) -> None:
        after = _states(model, tokens, dataclasses.replace(neighbours, **changes))
        torch.testing.assert_close(after, before, rtol=0, atol=1e-10)

    require_equal(ids=neighbours.ids.flip(1), lengths=neighbours.lengths.flip(1))
    is_real = torch.arange(R) < neighbours.lengths[..., None]
    require_equal(ids=neighbours.ids.where(is_real, 99))
    none = torch.zeros_like(neighbours.lengths[:, :1])
    require_equal(
        ids=torch.cat([neighbours.ids, neighbours.ids[:, :1]], 1), lengths=torch.cat([neighbours.lengths, none], 1)
    )


def test_without_neighbours_it_is_off(topology: ProcessTopology) -> None:
    model, (tokens, neighbours) = make_model(topology), make_texts(13)
    off, on = _states(model, tokens, None), _states(model, tokens, neighbours)
    nothing = dataclasses.replace(neighbours, lengths=torch.zeros_like(neighbours.lengths))
    assert torch.equal(_states(model, tokens, nothing), off)
    lengths = neighbours.lengths.clone()
    lengths[1] = 0
    some = _states(model, tokens, dataclasses.replace(neighbours, lengths=lengths))
    left_out = _states(model, tokens, neighbours.rows(torch.tensor([0, 2])))
    torch.testing.assert_close(some, left_out, rtol=0, atol=1e-12)
    torch.testing.assert_close(some[:7], on[:7], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["exact", "buckets", "none"])
def test_texts_do_not_depend_on_those_beside_them(topology: ProcessTopology, kind: Any) -> None:
    model = make_model(topology, dataclasses.replace(SHAPE, retro_relative_positions=kind))
    (long, of_long), (short, of_short) = make_texts(13), make_texts(6)
    ids = torch.cat([long.ids, torch.nn.functional.pad(short.ids, (0, 7), value=9)])
    both = Neighbours(
        torch.cat([of_short.ids, of_long.ids]),
        torch.cat([of_short.lengths, of_long.lengths]),
        torch.tensor([1, 0, 0, 0]),
        torch.cat([of_short.starts, of_long.starts]),
    )
    found = _states(model, TokenBatch(ids, torch.tensor([13, 6])), both)
    alone = torch.cat([_states(model, long, of_long), _states(model, short, of_short)])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("init", ["zero", "self-attention"])
def test_it_begins_as_the_model_without_neighbours(topology: ProcessTopology, init: Any) -> None:
    """Bit for bit, by the same weights; and all that is new learns by the third step."""
    shape = dataclasses.replace(SHAPE, retro_cca_init=init)
    plain = {field.name: getattr(SHAPE, field.name) for field in dataclasses.fields(CausalConfig)}
    model, base = Retro(shape, topology, seed=4).eval(), CausalLM(CausalConfig(**plain), topology, seed=4).eval()
    names = model.base_names()
    assert names == {name for name, _ in base.named_parameters()}
    tokens, neighbours = make_texts(13)
    places = torch.arange(13)
    with torch.no_grad():
        assert torch.equal(model(tokens, places, neighbours), base(tokens, places))
    new = {name: parameter for name, parameter in model.named_parameters() if name not in names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in new)
    had: set[str] = set()
    for _ in range(3):
        model.zero_grad()
        model(tokens, places, neighbours).square().sum().backward()
        had |= {name for name, parameter in new.items() if parameter.grad is not None and parameter.grad.any()}
        with torch.no_grad():
            for parameter in new.values():
                if parameter.grad is not None:
                    parameter -= 1e-4 * parameter.grad
    assert had == set(new)
    with torch.no_grad():
        assert not torch.equal(model(tokens, places, neighbours), base(tokens, places))
        assert torch.equal(model(tokens, places), base(tokens, places))


@torch.no_grad()
def test_reading_begins_with_the_keys_of_self_attention(topology: ProcessTopology) -> None:
    """Of states that are normed without a weight of their own."""
    model = make_model(topology, dataclasses.replace(SHAPE, retro_cca_init="self-attention"))
    generator = torch.Generator().manual_seed(6)
    for name, parameter in model.named_parameters():
        if name.endswith("layernorm.weight"):
            parameter.uniform_(0.5, 2, generator=generator)
    model.begin_to_read()
    states = torch.randn(2, 5, 32, dtype=torch.float64, generator=generator)
    layer: Any = model.stack.decoder.layers[2]
    parts = layer.self_attention.linear_qkv(layer.input_layernorm(states))[0].unflatten(2, (2, 4, 8))
    key, value = layer.cross_attention.keys_and_values(model.stack.neighbour_encoder.final_layernorm(states))
    torch.testing.assert_close(key.transpose(0, 1), parts[..., 2, :])
    torch.testing.assert_close(value.transpose(0, 1), parts[..., 3, :])
    query = layer.cross_attention.linear_q(layer.pre_cross_attn_layernorm(states))[0].unflatten(2, (2, 2, 8))
    torch.testing.assert_close(query, parts[..., :2, :])
    encoder: Any = model.stack.neighbour_encoder.layers.layers[1]
    own, source = encoder.mlp, model.stack.decoder.layers[1].mlp
    assert torch.equal(own(states), source(states))


@torch.no_grad()
def test_a_null_key_is_read_where_nothing_was_found(topology: ProcessTopology) -> None:
    """Where nothing was searched for, it is not."""
    model, (tokens, neighbours) = make_model(topology, dataclasses.replace(SHAPE, retro_null_key=True)), make_texts(13)
    off = _states(model, tokens, None)
    nothing = dataclasses.replace(neighbours, lengths=torch.zeros_like(neighbours.lengths))
    null = _states(model, tokens, nothing)
    assert _changed(off, null) == set(range(3, 13))
    others = dataclasses.replace(nothing, ids=(nothing.ids + 1) % V)
    assert torch.equal(_states(model, tokens, others), null)
    some = nothing.lengths.clone()
    some[1] = neighbours.lengths[1]  # chunk 0 has found nothing still
    partly = _states(model, tokens, dataclasses.replace(neighbours, lengths=some))
    torch.testing.assert_close(partly[:7], null[:7], rtol=0, atol=1e-10)
    assert _changed(partly[7:], null[7:]) == set(range(6))
    none = torch.zeros(len(neighbours), 0, dtype=torch.int64)
    assert torch.equal(_states(model, tokens, dataclasses.replace(neighbours, ids=none[..., None], lengths=none)), off)
    for name, parameter in model.named_parameters():
        if name.endswith(".null"):
            parameter[:, 8:] = 0  # the values: what is read weighs less, and nothing where it is alone
    assert torch.equal(_states(model, tokens, nothing), off)
    assert not torch.equal(_states(model, tokens, neighbours), off)


def test_recomputed_layers_give_the_same_gradients(topology: ProcessTopology) -> None:
    tokens, neighbours = make_texts(13)
    found = []
    for granularity in ("none", "full"):
        model = make_model(topology, dataclasses.replace(SHAPE, recompute_granularity=granularity))
        model.train()(tokens, torch.arange(13), neighbours).square().mean().backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"retro_cca_init": "self-attention", "retro_relative_positions": "buckets"},
        {"add_qkv_bias": True, "qk_layernorm": True, "untie_embeddings_and_output_weights": True},
        {"retro_encoder_hidden_size": 16, "retro_relative_positions": "none", "retro_null_key": True},
    ],
)
def test_weights_are_counted(topology: ProcessTopology, changes: dict[str, Any]) -> None:
    shape = dataclasses.replace(SHAPE, **changes)
    model = Retro(shape, topology)
    assert retro_parameters(shape) == sum(parameter.numel() for parameter in model.parameters())
    base = {name: parameter for name, parameter in model.named_parameters() if name in model.base_names()}
    assert causal_parameters(shape) == sum(parameter.numel() for parameter in base.values())
    if not shape.add_qkv_bias:  # every matrix is multiplied with, that of the tied words once
        assert token_products(shape) == sum(parameter.numel() for parameter in base.values() if parameter.dim() == 2)


def test_an_encoder_of_another_width(topology: ProcessTopology) -> None:
    shape = dataclasses.replace(SHAPE, retro_encoder_hidden_size=16)
    model, (tokens, neighbours) = make_model(topology, shape), make_texts(13)
    assert model.stack.neighbour_encoder.embedding is not None
    assert _changed(_states(model, tokens, None), _states(model, tokens, neighbours)) == set(range(3, 13))
