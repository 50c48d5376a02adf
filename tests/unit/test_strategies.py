"""The table of strategies: figures with paired intervals, hours by part, and what claims come to."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from megatron_retrieval.applications.strategies import StrategiesConfig, main
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.reports.strategies import Hours, Strategy, claims, read_strategies

NUM_QUESTIONS = 40


def _write_lines(path: Path, lines: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _run(folder: Path, seconds: float, num_read: int = 10) -> Path:
    """Four steps of two processes, of which every other is logged: 2, 4 and 6 seconds for a process."""
    step = {"seconds_searching": 1.0, "seconds_encoding": 2.0, "seconds_reading": 3.0}
    counts = {"num_passages_asked": 10, "num_passages_read": num_read}
    _write_lines(folder / "metrics.jsonl", [{"iteration": n, **step, **counts} for n in (2, 4)] + [{"iteration": 4}])
    (folder / "run_record.json").write_text(json.dumps({"seconds": seconds, "world_size": 2, "iterations": 4}))
    return folder


def _strategy(folder: Path, num_right: int, num_found: int, runs: list[Path], word: str = "who") -> Path:
    answers: list[dict[str, object]] = [
        {"question": f"{word} {n}", "exact_match": float(n < num_right), "f1": 1.0} for n in range(NUM_QUESTIONS)
    ]
    ranks: list[dict[str, object]] = [
        {"id": str(n), "question": f"{word} {n}", "answer_rank": 5 if n < num_found else 6, "gold_rank": 1}
        for n in range(NUM_QUESTIONS)
    ]
    _write_lines(folder / "answers" / "predictions.jsonl", answers)
    _write_lines(folder / "recall" / "ranks.jsonl", ranks)
    (folder / "training.json").write_text(json.dumps(list(map(str, runs))))
    return folder


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = tmp_path / "two"
    chosen, other = _run(grid / "lr-1", 72, num_read=5), _run(grid / "lr-2", 36, num_read=5)
    rows = [{"lr": 1.0, "output_dir": str(chosen)}, {"lr": 2.0, "output_dir": str(other)}]
    (grid / "lr_grid.json").write_text(json.dumps({"best": rows[0], "runs": rows}))
    one = _run(tmp_path / "one", 36)
    folders = (
        _strategy(tmp_path / "none", 10, 20, []),
        _strategy(tmp_path / "generator", 30, 20, [one]),
        _strategy(tmp_path / "two-phase", 30, 22, [one, grid]),
    )
    main(StrategiesConfig(strategies=folders, output_dir=tmp_path / "out"))
    table = capsys.readouterr().out
    assert table == (tmp_path / "out" / "strategies.md").read_text()
    assert "| none | 25.0 [" in table
    assert "| +50.0 [+35.0, +65.0] |" in table
    found = {row["strategy"]: row for row in json.loads((tmp_path / "out" / "strategies.json").read_text())}
    assert found["generator"]["recall_difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    # 36 s of two processes, of which 4, 8 and 12 are known of each; then 72 s, where half of what was asked was read
    hours = {name: 3600 * value for name, value in found["generator"]["hours"].items()}
    assert hours == pytest.approx(
        {"searching": 8, "encoding": 16, "reading": 24, "rest": 24, "total": 72, "grid": 0, "without_memory": 72}
    )
    hours = {name: 3600 * value for name, value in found["two-phase"]["hours"].items()}
    assert hours == pytest.approx(
        {"searching": 16, "encoding": 32, "reading": 48, "rest": 120, "total": 216, "grid": 72, "without_memory": 240}
    )
    assert found["none"]["hours"]["total"] == 0
    with pytest.raises(MismatchError, match="answer or search different questions"):
        read_strategies([folders[0], _strategy(tmp_path / "else", 1, 1, [], word="what")])


def test_what_another_rate_has_read(tmp_path: Path) -> None:
    """The rate that is chosen reads nothing itself; without memory it had read all that it asks for."""
    folder, grid = _strategy(tmp_path / "two-phase", 30, 22, [tmp_path / "grid"]), tmp_path / "grid"
    chosen, other = _run(grid / "lr-2", 24, num_read=0), _run(grid / "lr-1", 36, num_read=10)
    rows = [{"lr": 1.0, "output_dir": str(other)}, {"lr": 2.0, "output_dir": str(chosen)}]
    (grid / "lr_grid.json").write_text(json.dumps({"best": rows[1], "runs": rows}))
    (strategy,) = read_strategies([folder])
    # 24 s of reading in each, for 80 passages in all: 48 s for the 80 that the chosen one asks for
    assert 3600 * strategy.hours.total == pytest.approx(48)
    assert 3600 * strategy.hours.forgetful == pytest.approx(72)


def test_steps_without_a_reader_are_encoding(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _write_lines(run / "metrics.jsonl", [{"iteration": n, "examples_per_second": 4.0} for n in (5, 10)])
    record = {"seconds": 30, "world_size": 2, "iterations": 10, "config": {"global-batch-size": 8}}
    (run / "run_record.json").write_text(json.dumps(record))
    (strategy,) = read_strategies([_strategy(tmp_path / "embedder", 10, 20, [run])])
    parts = {name: 3600 * value for name, value in strategy.hours.parts.items()}
    assert parts == pytest.approx({"searching": 0, "encoding": 40, "reading": 0, "rest": 20})


def _figures(name: str, share: float, hours: float) -> Strategy:
    hits = (np.arange(400) < 400 * share).astype(np.float64)
    parts = {"searching": 0.0, "encoding": 0.0, "reading": hours, "rest": 0.0}
    return Strategy(name, dict.fromkeys(("exact_match", "f1", "recall"), hits), Hours(parts, 0.0, hours))


def test_claims_are_judged() -> None:
    shares = {"none": 0.3, "embedder": 0.2, "generator": 0.5, "independent": 0.5, "two-phase": 0.51}
    shares |= {"joint-sequence": 0.3, "joint-token": 0.52}
    found = claims({name: _figures(name, share, n) for n, (name, share) in enumerate(shares.items())})
    verdicts = {claim: verdict for claim, _, verdict in found}
    assert verdicts["generator has more EM than none"] == "shown"
    assert verdicts["embedder has more recall@5 than none"] == "contradicted"
    assert verdicts["joint-sequence has more recall@5 than none"] == "not shown"
    assert verdicts["independent and two-phase have equal EM"] == "shown"
    assert verdicts["independent and joint-sequence have equal EM"] == "contradicted"
    name, verdict = verdicts.popitem()
    assert (verdict, "joint-sequence, joint-token < two-phase" in name) == ("contradicted", True)


@pytest.mark.parametrize(("hours", "verdict"), [((4, 5), "shown"), ((6, 5), "contradicted"), ((4, 2), "contradicted")])
def test_no_joint_training_is_left_out_of_the_claim_about_hours(hours: tuple[int, int], verdict: str) -> None:
    names = ("generator", "independent", "joint-sequence", "joint-token", "two-phase")
    found = claims({name: _figures(name, 0.5, n) for name, n in zip(names, (1, 3, *hours, 6), strict=True)})
    assert found[-1][2] == verdict


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib draws the picture")
def test_the_picture(tmp_path: Path) -> None:
    folders = (_strategy(tmp_path / "none", 10, 20, []), _strategy(tmp_path / "embedder", 12, 25, []))
    main(StrategiesConfig(strategies=folders, output_dir=tmp_path, picture=True))
    assert (tmp_path / "strategies.png").read_bytes().startswith(b"\x89PNG")
