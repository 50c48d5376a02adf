"""Flags and YAML are one surface; checkpoint settings are defaults that flags override."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

from megatron_retrieval.config.marks import formerly
from megatron_retrieval.config.parser import from_flat_dict, parse_config, to_flat_dict, write_config
from megatron_retrieval.errors import ConfigError, MegatronRetrievalError


@dataclass(kw_only=True, frozen=True)
class Shape:
    """Shape."""

    num_layers: int = 12
    """Layers."""
    pooling: str | None = None
    """Pooling."""


@dataclass(kw_only=True, frozen=True)
class Job:
    """A job."""

    data: tuple[str, ...]
    """Files."""
    scaling: bool = True
    """Scaling."""
    load: str | None = field(default=None, metadata=formerly("old-load"))
    """Checkpoint."""
    shape: Shape = field(default_factory=Shape)

    def with_artefact_defaults(self) -> Job:
        """As if the checkpoint had three layers and no scaling."""
        return self if self.read is None else dataclasses.replace(self, shape=Shape(num_layers=3), scaling=False)

    @cached_property
    def read(self) -> object | None:
        """Another one for every reading."""
        return object() if self.load else None


def test_written_settings_read_back(tmp_path: Path) -> None:
    job = parse_config(Job, ["--data", "a", "b", "--no-scaling", "--num-layers", "2"])
    assert job == Job(data=("a", "b"), scaling=False, shape=Shape(num_layers=2))
    write_config(job, tmp_path / "job.yaml")
    assert parse_config(Job, ["--config", str(tmp_path / "job.yaml")]) == job
    assert from_flat_dict(Job, to_flat_dict(job)) == job


def test_flags_win_over_the_file_and_underscores_are_hyphens(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("data: [a]\nnum_layers: 4\n")
    words = ["--config", str(tmp_path / "job.yaml"), "--num-layers", "5"]
    assert parse_config(Job, words).shape.num_layers == 5


def test_a_former_name_is_accepted_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "job.yaml").write_text("data: [a]\nold-load: x\n")
    caplog.set_level("INFO")
    for words in (
        ["--config", str(tmp_path / "job.yaml")],
        ["--data=a", "--old_load=x"],
        ["--data", "a", "--old-load", "x"],
    ):
        caplog.clear()
        assert parse_config(Job, words).load == "x"
        (message,) = caplog.messages
        assert "is called --load now" in message
    assert parse_config(Job, ["--config", str(tmp_path / "job.yaml"), "--load", "y"]).load == "y"


def test_unknown_key_names_file_line_and_nearest(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("data: [a]\nnum-layer: 4\n")
    with pytest.raises(ConfigError, match=r"job\.yaml:2: unknown key 'num-layer'\. Perhaps you meant 'num-layers'"):
        parse_config(Job, ["--config", str(path)])


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", ""])
def test_unusable_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(MegatronRetrievalError, match=r"job\.yaml"):
        parse_config(Job, ["--config", str(tmp_path / "job.yaml")])


def test_unknown_flag_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(Job, ["--data", "a", "--num-layer", "2"])
    assert stop.value.code == 2
    assert "--num-layers" in capsys.readouterr().err


def test_checkpoint_settings_are_defaults_and_flags_win() -> None:
    assert parse_config(Job, ["--data", "a", "--load", "x"]).shape.num_layers == 3
    # even a flag that repeats the class's own default
    assert parse_config(Job, ["--data", "a", "--load", "x", "--num-layers", "12"]).shape.num_layers == 12
    assert parse_config(Job, ["--data=a", "--load=x", "--num_layers=12"]).shape.num_layers == 12
    # one of two settings of the same part, and a switch that the checkpoint turns off
    job = parse_config(Job, ["--data", "a", "--load", "x", "--pooling", "mean"])
    assert job == Job(data=("a",), scaling=False, load="x", shape=Shape(num_layers=3, pooling="mean"))
    job = parse_config(Job, ["--data", "a", "--load", "x", "--scaling"])
    assert job.scaling
    assert "read" in vars(job), "what was read of the checkpoint is not handed on"
