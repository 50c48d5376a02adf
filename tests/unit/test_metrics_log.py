"""A resumed run takes up its metrics.jsonl where the checkpoint stands."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_retrieval.training.metrics_log import LogConfig, MetricsLog, drop_lines_after


def test_later_and_cut_off_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"iteration": number, "loss": 1.0}) for number in (1, 2, 3)]
    path.write_text("\n".join([*lines, '{"iteration": 2, "lo']))
    drop_lines_after(path, 2)
    assert path.read_text().splitlines() == lines[:2]


def test_nothing_to_drop_without_a_file(tmp_path: Path) -> None:
    drop_lines_after(tmp_path / "metrics.jsonl", 5)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_are_json(tmp_path: Path) -> None:
    log = MetricsLog(LogConfig(output_dir=str(tmp_path), tensorboard=False), examples_per_step=1, is_main=True)
    log._file = (tmp_path / "metrics.jsonl").open("a")
    log.write(3, {"loss": float("nan"), "lr": 0.5})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 3, "loss": null, "lr": 0.5}\n'
