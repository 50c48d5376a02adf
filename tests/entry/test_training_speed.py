"""The benchmark of training steps runs on a tiny encoder: both sides compute the same, and each is timed."""

from __future__ import annotations

import re
from pathlib import Path

from programs import command, refuse, run

from megatron_retrieval.testing.tiny import write_tiny_dpr

TASKS = ("in-batch", "hard-negative", "cached", "ict", "extractive", "fusion")
SHAPE = (
    "--num-layers",
    2,
    "--hidden-size",
    32,
    "--num-attention-heads",
    2,
    "--max-position-embeddings",
    256,
    "--init-method-std",
    0.2,
)


def test_steps_are_compared(tmp_path: Path) -> None:
    data, vocabulary = write_tiny_dpr(tmp_path)
    given = ("--train-data", data, "--vocab-file", vocabulary, "--num-questions", 8, "--num-rounds", 1)
    weights = ("--init-method-std", 0.2)  # with the usual 0.02 gradients of so narrow an encoder are next to nothing
    result = run(command("benchmarks/training_speed.py", *given, *SHAPE, *weights, "--micro-batch-size", 3))
    assert result.returncode == 0, result.stderr
    for task in TASKS:  # that losses and gradients agree is what the benchmark itself refuses to do without
        assert re.search(rf"^{task} +\d+\.\d+ +\d+\.\d+ +\d\.\d+ +\d\.\d+ +\d+\.\d\d +", result.stdout, re.MULTILINE)
    refuse(command("benchmarks/training_speed.py", "--train-data", data), "give --vocab-file")
