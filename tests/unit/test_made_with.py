"""A resumed run says which settings and inputs differ from the checkpoint's, and refuses what would falsify it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from megatron_retrieval.config.marks import FREE, HELD_OUT, INPUT
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.training.made_with import MadeWith
from megatron_retrieval.utils.files import sampled_fingerprint


@dataclass(kw_only=True, frozen=True)
class _Rates:
    lr: float = 2e-5
    warmup: int | None = None


@dataclass(kw_only=True, frozen=True)
class _Job:
    train: tuple[str, ...] = field(metadata=INPUT)
    start: Path | None = field(default=None, metadata=INPUT)
    valid: tuple[str, ...] = field(default=(), metadata=HELD_OUT)
    output: str = field(default="a", metadata=FREE)
    seed: int = 1
    rates: _Rates = field(default_factory=_Rates)
    width: int = 30


@pytest.fixture
def job(tmp_path: Path) -> _Job:
    (tmp_path / "train.json").write_text("one")
    (tmp_path / "valid.json").write_text("two")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "manifest.json").write_text('{"fingerprint": "f1"}')
    files = (tmp_path / "train.json", tmp_path / "valid.json")
    return _Job(train=(str(files[0]),), valid=(str(files[1]),), start=tmp_path / "start")


def _made_with(job: _Job, **identity: Any) -> MadeWith:
    return MadeWith.of(job, {"--seed": job.seed, "questions": 5, **identity}, {"width": 7})


def _said(caplog: pytest.LogCaptureFixture, saved: MadeWith, now: MadeWith, accept_changes: bool = False) -> str:
    """The one line that is logged; empty for none."""
    caplog.set_level("INFO")
    caplog.clear()
    now.require_unchanged(json.loads(json.dumps(saved.to_json())), Path("it"), accept_changes=accept_changes)
    assert len(caplog.messages) <= 1
    return caplog.messages[0].removeprefix("it was made with other settings: ") if caplog.messages else ""


def test_an_equal_run_is_silent_wherever_its_files_are(
    job: _Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = _made_with(job)
    assert not _said(caplog, saved, _made_with(job))
    moved = [Path(name).rename(tmp_path / f"moved-{Path(name).name}") for name in (*job.train, *job.valid)]
    there = dataclasses.replace(job, train=(str(moved[0]),), valid=(str(moved[1]),), output="b", width=8)
    assert not _said(caplog, saved, _made_with(there))
    _made_with(job).require_unchanged({"identity": saved.identity}, tmp_path, accept_changes=False)  # of an old version


def test_what_does_not_falsify_is_said_with_both_values(job: _Job, caplog: pytest.LogCaptureFixture) -> None:
    saved = _made_with(job)
    Path(job.valid[0]).write_text("three")
    changed = dataclasses.replace(job, rates=_Rates(lr=0.5, warmup=6), start=None)
    expected = f"--lr 0.5 (was 2e-05), --warmup 6 (was none), --valid {job.valid[0]} (with other contents), "
    assert _said(caplog, saved, _made_with(changed)) == f"{expected}--start none (was {job.start})"
    without = _made_with(dataclasses.replace(job, valid=()))
    assert _said(caplog, without, _made_with(job)) == f"--valid {job.valid[0]} (was none)"
    assert _said(caplog, _made_with(job), without) == f"--valid none (was {job.valid[0]})"


def test_what_falsifies_is_refused_unless_accepted(job: _Job, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = _made_with(job)
    Path(job.train[0]).write_text("One")
    (tmp_path / "start" / "manifest.json").write_text('{"fingerprint": "f2"}')
    other = dataclasses.replace(job, seed=2, train=(job.train[0], job.valid[0]))
    train, start = job.train[0], f"--start {job.start} (with other contents)"
    cases = {
        f"--train {train} (with other contents), {start}": _made_with(job),
        f"--seed 2 (was 1), --train {train} {job.valid[0]} (was {train}), {start}": _made_with(other),
        "questions 6 (was 5)": dataclasses.replace(saved, identity={**saved.identity, "questions": 6}),
        "--seed none (was 1), questions none (was 5), blocks 1 (was none)": dataclasses.replace(
            saved, identity={"blocks": 1}
        ),  # another job over the same model
    }
    for difference, now in cases.items():
        with pytest.raises(ConfigError) as refused:
            _said(caplog, saved, now)
        assert difference in str(refused.value)
        assert "--accept-changes" in str(refused.value)
        assert _said(caplog, saved, now, accept_changes=True) == difference


def test_a_start_that_is_gone_does_not_hinder(job: _Job, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = _made_with(job)
    (tmp_path / "start").rename(tmp_path / "gone")
    assert not _said(caplog, saved, _made_with(job))


def test_a_large_file_is_told_by_its_size_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of zeros that takes no room
    found = {sampled_fingerprint(path)}
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    found.add(sampled_fingerprint(path))
    with path.open("r+b") as file:
        file.truncate((1 << 40) - 1)
    found.add(sampled_fingerprint(path))
    assert len(found) == 3
