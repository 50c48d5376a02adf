"""The benchmark of the evidence builder runs, on a few passages: both are timed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from programs import command, refuse, run

from megatron_retrieval.testing.tiny import write_tiny_evidence

PROGRAM = "benchmarks/evidence_speed.py"


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[object, ...]:
    write_tiny_evidence(tmp_path, num_distractors=50)
    return "--input", tmp_path / "passages.jsonl", "--vocab-file", tmp_path / "vocab.txt"


def test_tokenizer_and_builder_are_timed(inputs: tuple[object, ...]) -> None:
    result = run(command(PROGRAM, *inputs, "--num-passages", 80, "--num-rounds", 1))
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^(\d+), (\w+) +[\d,]+ +(\d+\.\d\d) +\S+ to \S+ +\d+$", result.stdout, re.MULTILINE)
    assert [row[:2] for row in rows] == [("80", "tokenizer"), ("80", "builder")]
    assert rows[0][2] == "1.00"


def test_no_rounds_are_refused(inputs: tuple[object, ...]) -> None:
    refuse(command(PROGRAM, *inputs, "--num-rounds", 0), "--num-rounds 0: must be at least 1")
