"""Our data-parallel model and optimizer against a plain PyTorch loop with the same weights."""

from __future__ import annotations

import pytest
import torch

from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import contrastive_share, tiny_dual_encoder_config
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep

NUM_STEPS, LR, CLIP, DECAY = 4, 1e-2, 0.5, 0.1
EPS = 1e-4  # large, so that Adam does not blow gradients that are zero but for rounding up to full steps
ONE_PASS = ContrastiveConfig(micro_batch_size=64)


def _ours(topology: ProcessTopology) -> dict[str, torch.Tensor]:
    model = DualEncoder(tiny_dual_encoder_config(), topology, seed=1)
    parallel = DataParallelModel(model, topology)
    config = OptimizerConfig(lr=LR, clip_grad=CLIP, weight_decay=DECAY, adam_eps=EPS)
    optimizer = Optimizer(parallel, config, PrecisionConfig(), topology)
    step = ContrastiveStep(model, ONE_PASS, topology, seed=0)
    for iteration in range(NUM_STEPS):
        parallel.zero_gradients()
        batch = contrastive_share(8, 1, iteration, topology.dp_rank, topology.dp_size)
        step.forward_backward(batch, iteration, optimizer.loss_scale)
        parallel.reduce_gradients()
        optimizer.step(LR / (1 + iteration))
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _plain(topology: ProcessTopology) -> dict[str, torch.Tensor]:
    model = DualEncoder(tiny_dual_encoder_config(), topology, seed=1)
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1]
    others = [p for n, p in model.named_parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, eps=EPS)
    step = ContrastiveStep(model, ONE_PASS, topology, seed=0)
    for iteration in range(NUM_STEPS):
        optimizer.zero_grad()
        step.forward_backward(contrastive_share(8, 1, iteration), iteration, 1.0)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = LR / (1 + iteration)
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_steps_equal_a_plain_loop(num_ranks: int) -> None:
    (expected,) = run_on_ranks(_plain, 1)
    for weights in run_on_ranks(_ours, num_ranks):
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023
