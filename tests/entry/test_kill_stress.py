"""Work that is killed at random and started again ends in the result of uninterrupted work."""

from __future__ import annotations

import importlib.util
import re
import sys

import pytest
from programs import ROOT

SCRIPT = ROOT / "benchmarks" / "kill_stress.py"


def test_killed_work_resumes_to_the_same_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, whose programs are forked from a warm one."""
    spec = importlib.util.spec_from_file_location("kill_stress", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kill_stress", script)
    spec.loader.exec_module(script)
    script.main(script.KillStressConfig(kills=2, kills_of_one=1, kinds=("build BM25", "end to end, background")))
    rows = re.findall(r"^(build BM25|end to end, background) +(\d+)", capsys.readouterr().out, re.MULTILINE)
    kills = {kind: int(number) for kind, number in rows}
    # work that ended before its kill is passed over, and the next kind is killed instead
    assert kills.keys() == {"build BM25", "end to end, background"}
    assert sum(kills.values()) == 2
