"""An encoder asked for the first token's state alone gives it and its gradients as ever, and computes no other in its
last layer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.encoder import EncoderShape, first_states
from megatron_retrieval.models.initialise import initialise_normal
from megatron_retrieval.models.modernbert import ModernBertConfig
from megatron_retrieval.models.mpnet import MpnetConfig
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.testing.tiny import random_texts

SHAPE = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
    "vocab_size": 64,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
BERT = BertConfig(**SHAPE)
SHAPES = {
    "BERT": BERT,
    "BERT that computes layers again": dataclasses.replace(BERT, recompute_granularity="full"),
    "MPNet, whose bias has a row for every query": MpnetConfig(**SHAPE),
    "ModernBERT, whose last layer sees a window": ModernBertConfig(**SHAPE, ffn_hidden_size=24, local_attention=6),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_first_tokens_state_is_the_same_alone(shape: EncoderShape) -> None:
    texts = random_texts(5, 12, seed=1)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        encoder = shape.build_encoder(topology)
        assert isinstance(encoder, nn.Module)
        initialise_normal(encoder, topology, std=0.2, seed=2)
        encoder.train()
        rows: list[int] = []
        last = encoder.get_submodule("encoder.layers.1.mlp")
        last.register_forward_hook(lambda module, inputs, output: rows.append(output.size(0)))

        whole, gradients = _trained(encoder, encoder(texts)[:, 0])
        alone, own_gradients = _trained(encoder, first_states(encoder, texts))
    torch.testing.assert_close(alone, whole)
    torch.testing.assert_close(own_gradients, gradients)
    assert set(rows) == {12, 1}


def _trained(encoder: nn.Module, states: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The states, and the gradients of a function of them."""
    encoder.zero_grad()
    states.square().mean().backward()
    return states.detach(), {name: p.grad for name, p in encoder.named_parameters()}
