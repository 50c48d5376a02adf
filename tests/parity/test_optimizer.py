"""Our data-parallel model and optimizer against a plain PyTorch loop with the same weights."""

from __future__ import annotations

from typing import Any

import megatron.core.optimizer
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


class FusedAdam(torch.optim.Optimizer):
    """Adam that counts its steps as apex and Transformer Engine do: in the parameter group, from the first step on."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, **_: Any) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            group["step"] = count = group.get("step", 0) + 1
            first, second = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                for moment in ("exp_avg", "exp_avg_sq"):
                    state.setdefault(moment, torch.zeros_like(parameter))
                state["exp_avg"].lerp_(parameter.grad, 1 - first)
                state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - second)
                mean, square = state["exp_avg"] / (1 - first**count), state["exp_avg_sq"] / (1 - second**count)
                parameter.sub_(group["lr"] * mean / (square.sqrt() + group["eps"]))


def _with_fused_adam(topology: ProcessTopology, num_steps: int, stop_after: int) -> dict[str, torch.Tensor]:
    """Weights after some steps; after `stop_after` another optimizer continues from what the first one gave."""
    megatron.core.optimizer.Adam, megatron.core.optimizer.USING_PYTORCH_OPTIMIZER = FusedAdam, False
    model = DualEncoder(tiny_dual_encoder_config(), topology, seed=1)
    step = ContrastiveStep(model, ONE_PASS, topology, seed=0)

    def new() -> tuple[DataParallelModel, Optimizer]:
        parallel = DataParallelModel(model, topology)
        config = OptimizerConfig(lr=LR, clip_grad=CLIP, weight_decay=0.0, adam_eps=EPS)
        return parallel, Optimizer(parallel, config, PrecisionConfig(), topology)

    parallel, optimizer = new()
    for iteration in range(num_steps):
        if iteration == stop_after:
            tensors = {name: moment.clone() for name, moment in optimizer.state_tensors().items()}
            scalars = optimizer.state_scalars()
            assert scalars["num_steps"] == stop_after
            assert isinstance(optimizer._inner.optimizer, FusedAdam)
            parallel, optimizer = new()
            optimizer.load_state(tensors, scalars)
        parallel.zero_gradients()
        step.forward_backward(contrastive_share(8, 1, iteration), iteration, 1.0)
        parallel.reduce_gradients()
        optimizer.step(LR)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_an_adam_that_counts_in_its_groups_is_resumed() -> None:
    (whole,) = run_on_ranks(_with_fused_adam, 1, 6, 6)
    (resumed,) = run_on_ranks(_with_fused_adam, 1, 6, 3)
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
