"""RETRO's step is the same at any layout of ranks, with and without a frozen base, and it learns to read neighbours."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_retrieval.models.retro import Retro, RetroConfig
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.training.steps.retro_step import RetroStep, RetroStepConfig
from megatron_retrieval.training.trainer import reduce_metrics
from megatron_retrieval.types.neighbours import ChunkedTexts, Neighbours
from megatron_retrieval.types.tokens import TokenBatch

SHAPE = RetroConfig(
    num_layers=6,
    hidden_size=32,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=48,
    max_position_embeddings=64,
    vocab_size=100,
    init_method_std=0.2,
    retro_chunk_length=4,
    retro_cca_init="self-attention",
    retro_encoder_hidden_dropout=0.0,
    retro_encoder_attention_dropout=0.0,
    retro_null_key=True,
)
LENGTHS = torch.tensor([13, 8, 3, 12, 9, 5])


def _texts() -> ChunkedTexts:
    """Six texts; the third has no full chunk, the first chunk of the fourth no neighbours."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(SHAPE.vocab_size, (len(LENGTHS), 13), generator=generator)
    labels = torch.randint(SHAPE.vocab_size, ids.shape, generator=generator)
    labels = labels.where(torch.arange(13) < LENGTHS[:, None], -1)
    texts = torch.arange(len(LENGTHS)).repeat_interleave(LENGTHS // 4)
    starts = torch.cat([torch.arange(int(number)) * 4 for number in LENGTHS // 4])
    is_kept = ~((texts == 3) & (starts == 0))
    found = torch.randint(SHAPE.vocab_size, (len(texts), 2, 8), generator=generator)
    lengths = torch.tensor([[8, 3], [5, 0], [8, 8]]).repeat(len(texts), 1)[: len(texts)]
    return ChunkedTexts(TokenBatch(ids, LENGTHS), labels, Neighbours(found, lengths, texts, starts).rows(is_kept))


def _trained(topology: ProcessTopology, is_frozen: bool, micro_batch_size: int) -> dict[str, Any]:
    model = Retro(SHAPE, topology, seed=3)
    names = model.base_names()
    if is_frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in names)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".gate"):
                parameter.fill_(0.5)
    parallel = DataParallelModel(model, topology)
    optimizer = Optimizer(parallel, OptimizerConfig(lr=1e-2), PrecisionConfig(), topology)
    step = RetroStep(model, RetroStepConfig(micro_batch_size=micro_batch_size), topology, seed=3)
    share = _texts().rows(torch.arange(len(LENGTHS)).chunk(topology.dp_size)[topology.dp_rank])
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    losses, gradients = [], {}
    for iteration in range(5):
        parallel.zero_gradients()
        losses.append(reduce_metrics(step.forward_backward(share, iteration, 1.0), topology)["loss"])
        parallel.reduce_gradients()
        if not iteration:
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            gradients = {name: gather_full(p, topology, p.main_grad).clone() for name, p in trained.items()}
        optimizer.step(1e-2)
    unchanged = all(torch.equal(dict(model.named_parameters())[name], values) for name, values in frozen.items())
    return {"losses": losses, "gradients": gradients, "unchanged": unchanged, "num_frozen": len(frozen)}


@pytest.mark.parametrize("is_frozen", [False, True])
def test_layouts_agree(is_frozen: bool) -> None:
    (expected,) = run_on_ranks(_trained, 1, is_frozen, 6)
    assert expected["losses"][-1] < expected["losses"][0] - 0.1
    assert all(bool(gradient.any()) for gradient in expected["gradients"].values())
    assert expected["unchanged"]
    assert bool(expected["num_frozen"]) == is_frozen
    layouts = [(2, 2, 3), (2, 1, 1)] if is_frozen else [(4, 2, 2)]
    for num_ranks, tp_size, micro_batch_size in layouts:
        for found in run_on_ranks(_trained, num_ranks, is_frozen, micro_batch_size, tensor_model_parallel_size=tp_size):
            assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
            for name, gradient in expected["gradients"].items():
                torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


COPYING = RetroConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=2,
    ffn_hidden_size=48,
    max_position_embeddings=16,
    vocab_size=16,
    init_method_std=0.1,
    retro_chunk_length=4,
    retro_cross_attention_layers=(2,),
    retro_encoder_num_layers=1,
    retro_cca_init="normal",
    retro_encoder_hidden_dropout=0.0,
    retro_encoder_attention_dropout=0.0,
)


def _copied(generator: torch.Generator, num_texts: int, neighbour_length: int) -> ChunkedTexts:
    """The second chunk of every text is what follows its first chunk in the neighbour; only that is learned."""
    m, ids = 4, torch.randint(16, (num_texts, 8), generator=generator)
    labels = torch.full_like(ids, -1)
    labels[:, m - 1 : -1] = ids[:, m:]
    numbers = torch.arange(num_texts)
    lengths = torch.full((num_texts, 1), neighbour_length)
    found = Neighbours(ids[:, None].clone(), lengths, numbers, torch.zeros_like(numbers))
    return ChunkedTexts(TokenBatch(ids, torch.full((num_texts,), 8)), labels, found)


def _learned(topology: ProcessTopology, neighbour_length: int, num_steps: int) -> float:
    """The loss in nats on texts that were not learned from."""
    torch.manual_seed(1)
    model, generator = Retro(COPYING, topology, seed=1), torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def loss(num_texts: int) -> Tensor:
        batch = _copied(generator, num_texts, neighbour_length)
        places = (batch.labels.flatten() >= 0).nonzero()[:, 0]
        logits = model(batch.tokens, places, batch.neighbours)
        return vocab_parallel_cross_entropy(logits, batch.labels.flatten()[places]).mean()

    for _ in range(num_steps):
        optimizer.zero_grad()
        loss(32).backward()
        optimizer.step()
    with torch.no_grad():
        return float(loss(256))


def test_it_learns_to_copy_from_neighbours() -> None:
    """And cannot where these are cut before what is to be copied."""
    with process_topology(ParallelConfig(device="cpu")) as topology:
        assert _learned(topology, 8, 150) < 0.1
        assert _learned(topology, 4, 40) > math.log(16) - 0.05
        assert _learned(topology, 0, 40) > math.log(16) - 0.05


def test_dropout_of_the_encoder_is_of_training_alone() -> None:
    shape = dataclasses.replace(SHAPE, retro_encoder_hidden_dropout=0.5, retro_cca_init="normal")
    with process_topology(ParallelConfig(device="cpu")) as topology:
        step = RetroStep(Retro(shape, topology, seed=3), RetroStepConfig(), topology, seed=3)
        losses = [float(step.forward_backward(_texts(), iteration, 1.0)["loss"].part) for iteration in (0, 0, 1)]
        assert losses[0] == losses[1] != losses[2]
        one, other = (step.evaluate(_texts()) for _ in range(2))
        assert {name: float(metric.part) for name, metric in one.items()} == {
            name: float(metric.part) for name, metric in other.items()
        }
        assert float(one["loss"].part) != float(one["loss_without_neighbours"].part)
