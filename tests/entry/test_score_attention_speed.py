"""The benchmark of attention with scores runs, on a tiny decoder: the forms agree, and each is timed."""

from __future__ import annotations

import re

from programs import command, refuse, run

PROGRAM = "benchmarks/score_attention.py"
SHAPE = ("--hidden-size", 32, "--num-attention-heads", 2, "--passage-tokens", 9, "--answer-tokens", 4)


def test_every_form_is_timed() -> None:
    result = run(command(PROGRAM, *SHAPE, "--num-passages", 2, 3, "--num-rounds", 2, "--device", "cpu"))
    assert result.returncode == 0, result.stderr
    rows = re.findall(
        r"^([23]), (\w+)( +\d+\.\d+){2} +\d\.\d+ to \d+\.\d+ +\d+ +\d+\.\d+$", result.stdout, re.MULTILINE
    )
    assert [row[:2] for row in rows] == [(k, form) for k in "23" for form in ("mask", "explicit", "feature")]
    assert "--score-attention auto takes mask here" in result.stdout


def test_one_passage_is_refused() -> None:
    refuse(command(PROGRAM, "--num-passages", 5, 1), "--num-passages 5 1: must be at least 2")
