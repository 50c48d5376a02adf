"""Rows of the registry are whole, run their command, and are judged by the interval on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_retrieval.applications.reproduce import (
    REGISTRY,
    VERDICTS,
    NotReproducedError,
    ReproduceConfig,
    read_registry,
    reproduce,
)
from megatron_retrieval.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
ROWS = """
row:
  about: a row
  paper: {source: a paper, at: everything, scores: {recall@20: 0.784}}
  ours:
    command: mkdir -p {output} && cp {data} {output}/metrics.json && test $UNTIL = here
    until: here
    metrics: metrics.json
    at: nothing
    hours: 0.1
    expected: {recall@20: [0.75, 0.7, 0.8]}
published: {about: a row that nobody ran, full: examples/finetune_dpr.sh}
"""


def settings(folder: Path, name: str, recall: float) -> ReproduceConfig:
    (folder / "registry.yaml").write_text(ROWS)
    (folder / "the figures.json").write_text(json.dumps({"recall@20": recall}))
    places = {"data": folder / "the figures.json", "output_dir": folder / "out put"}
    return ReproduceConfig(name=name, registry=folder / "registry.yaml", **places)


def test_a_row_that_comes_out_as_on_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(tmp_path, "row", 0.7812)
    reproduce(config)
    printed = capsys.readouterr().out.splitlines()[-1].split()
    assert printed == ["recall@20", "78.4", "75.0", "[70.0,", "80.0]", "78.1", "as", "on", "record"]
    assert config.output_dir is not None
    verdict = json.loads((config.output_dir / VERDICTS).read_text())["figures"]
    assert verdict == [{"key": "recall@20", "value": 0.7812, "on_record": 0.75, "least": 0.7, "greatest": 0.8}]


@pytest.mark.parametrize("recall", [0.699, 0.801])
def test_a_row_that_does_not(tmp_path: Path, recall: float) -> None:
    with pytest.raises(NotReproducedError, match="row: recall@20 outside"):
        reproduce(settings(tmp_path, "row", recall))


def test_what_cannot_run_is_named(tmp_path: Path) -> None:
    config = settings(tmp_path, "row", 0.75)
    with pytest.raises(ConfigError, match="'raw' is no row"):
        reproduce(settings(tmp_path, "raw", 0.75))
    with pytest.raises(ConfigError, match=r"never measured here.*finetune_dpr\.sh"):
        reproduce(settings(tmp_path, "published", 0.75))
    with pytest.raises(ConfigError, match="--data is missing"):
        reproduce(ReproduceConfig(name="row", registry=config.registry, output_dir=tmp_path))
    (tmp_path / "the figures.json").unlink()
    with pytest.raises(DataError, match="ended with status 1"):
        reproduce(config)


def test_the_shipped_registry() -> None:
    """Scripts exist, the stage after which a row ends is one of theirs, and figures lie inside their interval."""
    rows = read_registry(ROOT / REGISTRY)
    for name, row in rows.items():
        assert row.paper or row.ours, name
        for command in (row.full, row.ours.command if row.ours else ""):
            scripts = [word for word in command.split() if word.endswith(".sh")]
            assert all((ROOT / script).is_file() for script in scripts), name
        if row.ours:
            assert all(least <= value <= greatest for value, least, greatest in row.ours.expected.values()), name
            assert row.ours.expected, name
