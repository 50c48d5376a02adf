"""Opening a store of a whole encyclopedia costs next to nothing; searching from disk takes a bounded part of memory."""

from __future__ import annotations

import re

from programs import command, run

ROWS = 600_000
DIMENSION = 384


def test_memory_is_bounded() -> None:
    words = ("--num-rows", ROWS, "--dimension", DIMENSION, "--num-queries", 2, "--k", 5)
    result = run(command("benchmarks/search_memory.py", *words))
    assert result.returncode == 0, result.stderr
    opened = re.search(r"^opening 21,015,324 rows: ([\d.]+) s, (\d+) MiB more$", result.stdout, re.MULTILINE)
    searched = re.search(
        r"^searching (\d+) MiB: [\d.]+ s, (\d+) MiB more, \d+ MiB in all$", result.stdout, re.MULTILINE
    )
    assert opened is not None
    assert searched is not None
    assert float(opened[1]) < 1
    assert int(opened[2]) < 200
    assert int(searched[1]) == ROWS * DIMENSION * 2 // 2**20
    assert int(searched[2]) < 0.6 * int(searched[1])
