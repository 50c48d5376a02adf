"""Building and embedding, killed at random and started again, end in the bytes of uninterrupted work."""

from __future__ import annotations

import re
from pathlib import Path

from programs import command, run
from tiny_line import write_evidence_and_encoder


def test_killed_work_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    checkpoint, vocab = write_evidence_and_encoder(tmp_path)
    settings = ("--input", tmp_path / "passages.jsonl", "--vocab-file", vocab, "--retriever", checkpoint)
    result = run(command("benchmarks/kill_stress.py", *settings, "--num-kills", 4))
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^(build|embed) +(\d+) +(\d+)$", result.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == ["build", "embed"]
    assert sum(int(row[2]) for row in rows) == 4
