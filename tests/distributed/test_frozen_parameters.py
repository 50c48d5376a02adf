"""Frozen parameters cost neither gradient buffers nor optimizer state, in modules of any kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks

NUM_TRAINED = 4 * 5 + 5 + 5 * 2 + 2


class _Adapted(nn.Module):
    """No megatron-core in it: a frozen bfloat16 matrix and frozen integers between trained layers of two dtypes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(4, 5)
        self.frozen = nn.Linear(5, 5, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        self.codes = nn.Parameter(torch.ones(7, dtype=torch.uint8), requires_grad=False)
        self.last = nn.Linear(5, 2, dtype=torch.bfloat16)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.frozen(self.first(inputs).bfloat16()))
        return outputs.float().square().sum()


def _step(topology: ProcessTopology) -> dict[str, Any]:
    module = _Adapted()
    model = DataParallelModel(module, topology)
    optimizer = Optimizer(model, OptimizerConfig(lr=0.1), PrecisionConfig(), topology)
    frozen = {name: p.clone() for name, p in module.named_parameters() if not p.requires_grad}
    model.zero_gradients()
    inputs = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)).chunk(topology.dp_size)[topology.dp_rank]
    module(inputs).backward()
    model.reduce_gradients()
    named: Any = dict(module.named_parameters())
    gradients = {name: p.main_grad.clone() for name, p in named.items() if p.requires_grad}
    optimizer.step(0.1)
    return {
        "gradients": gradients,
        "buffered": {name for name, p in named.items() if hasattr(p, "main_grad")},
        "buffer_bytes": sum(buffer.grad_data.nbytes for buffer in model.ddp.buffers),
        "state": set(optimizer.state_tensors()),
        "state_bytes": sum(tensor.nbytes for tensor in optimizer.state_tensors().values()),
        "unchanged": all(torch.equal(named[name], values) for name, values in frozen.items()),
        "main_dtypes": {str(optimizer.main_weight(name).dtype) for name in gradients},
    }


def _measured(topology: ProcessTopology) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, set) else value for name, value in _step(topology).items()}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_frozen_parameters_cost_nothing(num_ranks: int) -> None:
    (single,) = run_on_ranks(_measured, 1)
    trained = ["first.bias", "first.weight", "last.bias", "last.weight"]
    for found in run_on_ranks(_measured, num_ranks):
        assert found["buffered"] == trained
        assert found["buffer_bytes"] == 4 * NUM_TRAINED
        assert found["state"] == sorted(f"{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq") for name in trained)
        assert found["state_bytes"] == 2 * 4 * NUM_TRAINED
        assert found["unchanged"]
        assert found["main_dtypes"] == ["torch.float32"]
        torch.testing.assert_close(found["gradients"], single["gradients"], rtol=2e-2, atol=1e-3)
