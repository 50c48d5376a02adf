"""The benchmark of reading runs, on a tiny model: both readers give the same answers, and every round is shown."""

from __future__ import annotations

import re

from programs import command, refuse, run

PROGRAM = "benchmarks/reading_speed.py"
SHAPE = ("--num-layers", 1, "--hidden-size", 32, "--num-attention-heads", 2, "--ffn-hidden-size", 64)
TEXTS = ("--vocab-size", 99, "--num-questions", 3, "--num-passages", 2, "--shortest-text", 3, "--longest-text", 9)
NEWER = ("--gated-linear-unit", "--untie-embeddings-and-output-weights")
SEARCH = ("--num-beams", 2, "--max-answer-length", 5)


def test_both_readers_are_timed() -> None:
    result = run(command(PROGRAM, *SHAPE, *TEXTS, *NEWER, *SEARCH, "--num-rounds", 2, "--hf-batch-sizes", 1, 3))
    assert result.returncode == 0, result.stderr
    assert "3 of 3 answers are equal" in result.stdout
    assert len(re.findall(r"^Hugging Face's reader, [13] questions at once: \d", result.stdout, re.MULTILINE)) == 2
    assert len(re.findall(r"^round [12]: ours \d", result.stdout, re.MULTILINE)) == 2
    assert re.search(r"^a second of cpu time( +\d+\.\d\d){3}", result.stdout, re.MULTILINE)


def test_lengths_that_contradict_are_refused() -> None:
    refuse(command(PROGRAM, "--shortest-text", 300), "--shortest-text 300 must not be above")
