"""Global batches of thousands: memory hardly grows with them; loss and gradient are those of the plain computation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import contrastive_share, tiny_dual_encoder_config
from megatron_retrieval.training.steps import batch_losses
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.training.trainer import reduce_metrics

NUM_QUESTIONS = 101


def _peak_mebibytes(global_batch_size: int) -> float:
    """Of a process of its own that takes two steps."""
    words = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "peak_memory.py"), str(global_batch_size)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=240, check=True)
    return float(result.stdout)


def test_memory_at_4096_is_that_at_256() -> None:
    small, large = _peak_mebibytes(256), _peak_mebibytes(4096)
    assert large <= 1.3 * small, f"{large:.0f} MiB at 4096, {small:.0f} MiB at 256"


def _step(topology: ProcessTopology, most_scores: int, *, cached: bool) -> dict[str, torch.Tensor]:
    """Metrics and full gradients of one step, and the metrics of an evaluation."""
    batch_losses.MOST_SCORES = most_scores
    model = DualEncoder(tiny_dual_encoder_config(), topology, seed=3)
    parallel = DataParallelModel(model, topology)
    batch = contrastive_share(NUM_QUESTIONS, 1, 7, topology.dp_rank, topology.dp_size)
    step = ContrastiveStep(model, ContrastiveConfig(micro_batch_size=16, gradient_caching=cached), topology, seed=3)
    parallel.zero_gradients()
    metrics = reduce_metrics(step.forward_backward(batch, 0, 8.0), topology)
    parallel.reduce_gradients()
    found = {name: gather_full(p, topology, p.main_grad).clone() for name, p in model.named_parameters()}
    evaluated = reduce_metrics(step.evaluate(batch), topology)
    found |= {name: torch.tensor(value) for name, value in metrics.items()}
    return found | {f"evaluated {name}": torch.tensor(value) for name, value in evaluated.items()}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_blocks_of_questions_change_nothing(num_ranks: int) -> None:
    """7 questions to a block, against all scores at once and no caching in one process."""
    (expected,) = run_on_ranks(_uncached, 1)
    for found in run_on_ranks(_in_blocks, num_ranks):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name].double(),
                value.double(),
                rtol=1e-4,
                atol=1e-5,
                msg=lambda m: f"{name}: {m}",  # noqa: B023
            )


def _uncached(topology: ProcessTopology) -> dict[str, torch.Tensor]:
    return _step(topology, 1 << 40, cached=False)


def _in_blocks(topology: ProcessTopology) -> dict[str, torch.Tensor]:
    return _step(topology, 7 * 2 * NUM_QUESTIONS, cached=True)
