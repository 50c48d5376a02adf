"""The benchmark of plans runs, at a size at which only what is counted can be right."""

from __future__ import annotations

import re
from pathlib import Path

from programs import command, refuse, run

from megatron_retrieval.testing.tiny import write_tiny_evidence


def test_plans_are_compared_with_what_happens(tmp_path: Path) -> None:
    write_tiny_evidence(tmp_path)
    given = ("--input", tmp_path / "passages.jsonl", "--vocab-file", tmp_path / "vocab.txt", "--folder", tmp_path)
    result = run(command("benchmarks/plan_check.py", *given, "--passages", 3000, "--hidden-size", 32))
    assert result.returncode == 0, result.stderr
    assert "3,000 passages" in result.stdout
    for name in ("evidence on disk", "embeddings on disk"):  # beside the data stand a vocabulary and manifests
        (difference,) = re.findall(rf"^{name}, MB .* ([-+]\d+\.\d)%$", result.stdout, re.MULTILINE)
        assert -5 < float(difference) <= 0
    assert len(re.findall(r"^(building|embedding|a search), s +\S+ +\S+ +[-+]", result.stdout, re.MULTILINE)) == 3
    refuse(command("benchmarks/plan_check.py", *given, "--passages", 0), "--passages 0: must be at least 1")
