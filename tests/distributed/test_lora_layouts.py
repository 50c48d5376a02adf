"""Adapters learn the same with the model on two ranks as on one: of a T5, and of a Llama whose heads share keys."""

from __future__ import annotations

import pytest
import torch
from test_causal_reader import SHAPE as LLAMA
from test_causal_reader import _prompts
from test_fusion_reader import SHAPES, _whole_batch
from torch import Tensor, nn

from megatron_retrieval.models.adapters import B, LoraConfig, adapt
from megatron_retrieval.models.causal_lm import CausalLM
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.sharding import full_shape, shard_of
from megatron_retrieval.models.t5 import T5, shift_right
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.utils.seeds import derive_seed

LORA = LoraConfig(lora_rank=3, lora_alpha=6.0)
Gradients = dict[str, Tensor]


def _adapt(model: nn.Module, topology: ProcessTopology) -> None:
    """A as it starts, B far from where it does."""
    adapt(model.eval(), LORA, topology, seed=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(B):
                stream = torch.Generator().manual_seed(derive_seed(6, name))
                full = torch.randn(full_shape(parameter, topology.tp_size), generator=stream)
                parameter.copy_(shard_of(full, parameter, topology.tp_rank, topology.tp_size))


def _gradients(topology: ProcessTopology) -> dict[str, Gradients]:
    t5, llama = T5(SHAPES["t5"], topology, seed=3), CausalLM(LLAMA, topology, seed=3)
    for model in (t5, llama):
        _adapt(model, topology)
    batch = _whole_batch()
    texts, is_label = batch.texts.rows(torch.arange(len(batch.labels))), batch.labels >= 0
    logits = t5.logits(
        t5.decoder(shift_right(batch.labels, t5.start_id), EncodedMemory.of_texts(t5.encoder(texts), texts.lengths))
    )
    vocab_parallel_cross_entropy(logits[is_label], batch.labels[is_label]).sum().backward()
    prompts, _, _ = _prompts()
    is_before = torch.arange(prompts.ids.size(1)) < prompts.lengths[:, None] - 1
    targets = prompts.ids.roll(-1, 1)[is_before]
    vocab_parallel_cross_entropy(llama(prompts, is_before.flatten().nonzero()[:, 0]), targets).sum().backward()
    return {
        name: {key: gather_full(p, topology, p.grad) for key, p in model.named_parameters() if p.requires_grad}
        for name, model in (("t5", t5), ("llama", llama))
    }


@pytest.fixture(scope="module")
def one_rank() -> dict[str, Gradients]:
    (found,) = run_on_ranks(_gradients, 1)
    return found


def test_two_ranks_learn_what_one_does(one_rank: dict[str, Gradients]) -> None:
    for found in run_on_ranks(_gradients, 2, tensor_model_parallel_size=2):
        for model, expected in one_rank.items():
            assert found[model].keys() == expected.keys()
            for name, gradient in expected.items():
                atol = 1e-4 * float(gradient.abs().max())
                assert atol > 0, name
                torch.testing.assert_close(found[model][name], gradient, rtol=1e-3, atol=atol, msg=name)
