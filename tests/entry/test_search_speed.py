"""The benchmark of exact search runs, on few vectors: its rows are faiss's."""

from __future__ import annotations

import re

import pytest
import torch
from programs import command, refuse, run

PROGRAM = "benchmarks/search_speed.py"


def test_rows_are_those_of_faiss() -> None:
    words = ("--num-rows", 20_000, "--dimension", 48, "--num-clusters", 50, "--num-queries", 1, 5, "--num-rounds", 2)
    result = run(command(PROGRAM, *words, "--num-threads", 1))
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^(\d) +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ to [\d.]+ +(\d+\.\d+) %$", result.stdout, re.MULTILINE)
    assert [count for count, _ in rows] == ["1", "5"]
    assert all(float(equal) > 99 for _, equal in rows)


def test_more_rows_than_there_are_are_refused() -> None:
    refuse(command(PROGRAM, "--num-rows", 50), "are more than --num-rows 50")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_s_benchmark_says_what_it_needs() -> None:
    refuse(command("benchmarks/search_gpu.py"), "needs a GPU")
