"""What scores are divided by where nothing is said: the root of their size, or of cosines a twentieth."""

from __future__ import annotations

import dataclasses
import math

import pytest

from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import contrastive_share, tiny_dual_encoder_config
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.training.steps.scoring import ScoreScalingConfig


@pytest.mark.parametrize(
    ("scaling", "temperature", "of_any", "of_unit"),
    [
        (True, None, 4.0, 0.05),
        (True, 2.0, 8.0, 8.0),
        (False, None, 1.0, 1.0),
        (False, 0.1, 0.1, 0.1),
    ],
)
def test_what_is_given_holds(scaling: bool, temperature: float | None, of_any: float, of_unit: float) -> None:
    config = ScoreScalingConfig(retriever_score_scaling=scaling, temperature=temperature)
    assert config.over(is_unit=False).score_divisor(16) == config.score_divisor(16) == of_any
    assert config.over(is_unit=True).score_divisor(16) == of_unit
    assert config.over(is_unit=True).over(is_unit=True) == config.over(is_unit=True)


def _losses(topology: ProcessTopology) -> list[float]:
    shape = dataclasses.replace(tiny_dual_encoder_config(), normalize_embeddings=True)
    batch = contrastive_share(6, 1, 7)
    stated = ContrastiveConfig(retriever_score_scaling=False, temperature=0.05)
    steps = [
        ContrastiveStep(DualEncoder(shape, topology), config, topology, 1) for config in (ContrastiveConfig(), stated)
    ]
    return [step.evaluate(batch)["loss"].part.item() for step in steps]


def test_cosines_tell_passages_apart_without_a_word() -> None:
    ((unsaid, stated),) = run_on_ranks(_losses, 1)
    assert unsaid == stated
    assert not math.isclose(unsaid, math.log(12), abs_tol=0.05), "the loss of a softmax that is flat"
