"""The run record says what a figure was made with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from megatron_retrieval.parallel.topology import ParallelConfig
from megatron_retrieval.training.run_record import RunRecord, git_state, versions


@dataclass(kw_only=True, frozen=True)
class _Config:
    """A job."""

    output_dir: Path = Path("out")
    """Where."""
    topk: tuple[int, ...] = (1, 5)
    """Depths."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""


def test_record_is_complete_and_plain_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/python3")
    monkeypatch.setattr(sys, "orig_argv", ["python3", "tools/tool.py", "--name", "two words"])
    path = RunRecord(_Config(), world_size=2).write(tmp_path / "new", recall=0.5, folder=Path("x"))
    record = json.loads(path.read_text())
    assert path.name == "run_record.json"
    assert record["config"]["output-dir"] == "out"
    assert record["config"]["topk"] == [1, 5]
    assert record["config"]["tensor-model-parallel-size"] == 1
    assert record["world_size"] == 2
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["megatron-core"]
    assert set(record["accelerators"]) == {"transformer_engine", "apex", "triton"}
    assert all(isinstance(found, bool) for found in record["accelerators"].values())
    assert record["hardware"]["cores"] >= 1
    assert record["hardware"]["memory_bytes"] > 1 << 28
    assert record["seconds"] >= 0
    assert record["command"] == "python3 tools/tool.py --name 'two words'"
    assert (record["recall"], record["folder"]) == (0.5, "x")


def test_missing_packages_are_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_retrieval.training.run_record.PACKAGES", ("torch", "surely-not-installed"))
    assert versions()["surely-not-installed"] is None


def test_git_state_of_a_repository_and_of_none(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert git_state(package) is None
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        assert git_state(package) is None  # surrounded by a repository that does not track it
        subprocess.run(["git", *words], cwd=tmp_path, check=True, env={**os.environ, **identity})
    state = git_state(package)
    assert state is not None
    assert (len(state["commit"]), state["dirty"]) == (40, False)
    (package / "__init__.py").write_text("changed = True")
    assert git_state(package) == {"commit": state["commit"], "dirty": True}
