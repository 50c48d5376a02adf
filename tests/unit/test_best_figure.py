"""The best checkpoint stays whatever is pruned, DIR/best reads it, and a run without progress ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_retrieval.checkpoint.store.folders import BEST_NAME, LATEST_NAME, folder_of, publish, resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import CheckpointManifest, write_manifest
from megatron_retrieval.errors import CheckpointError, ConfigError
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.training.best_figure import BestFigure
from megatron_retrieval.training.callbacks import EvalConfig, SaveCheckpoints
from megatron_retrieval.training.metrics_log import LogConfig, MetricsLog
from megatron_retrieval.training.trainer import StepReport


class _Saved(list[tuple[int, bool]]):
    """Writes down what is saved."""

    def save(self, iteration: int, *, is_best: bool) -> None:
        self.append((iteration, is_best))

    def look(self) -> None: ...

    def finish(self) -> None: ...


def follow(
    folder: Path, name: str, values: Sequence[float | None], patience: int | None, state: dict[str, Any] | None = None
) -> Any:
    """A run of as many steps as values, evaluated after each, saved every third."""
    log = MetricsLog(LogConfig(output_dir=str(folder), tensorboard=False), examples_per_step=1, is_main=True)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        best, saved = BestFigure(name, patience, log, topology), _Saved()
        saving: Any = SaveCheckpoints(saved, 3, best)  # type: ignore[arg-type]
        trainer: Any = SimpleNamespace(iteration=state["iteration"] if state else 0, train_iters=len(values))
        if state:
            best.restore(json.loads(json.dumps(state)))
        best.on_start(trainer)
        for iteration, value in enumerate(values, 1):
            if iteration > trainer.train_iters:
                break
            log.summarise(iteration, {"valid_loss": 1.0, f"valid_{name}": value})
            for callback in (best, saving):
                callback.on_step(trainer, StepReport(iteration, {}, 0.0))
        return saved, trainer.train_iters, best.state()


def test_the_best_so_far_is_saved(tmp_path: Path) -> None:
    saved, _, state = follow(tmp_path, "recall@5", [0.2, 0.5, None, 0.5, 0.6, float("nan")], None)
    assert saved == [(1, True), (2, True), (3, False), (5, True), (6, False)]
    assert state == {"name": "recall@5", "best": 0.6, "worse": 1, "iteration": 5}
    saved, _, state = follow(tmp_path, "average_rank", [2.0], None, {**state, "iteration": 0})
    assert (saved, state["best"]) == ([(1, True)], 2.0)  # another figure, whose best is not known yet


@pytest.mark.parametrize("name", ["loss", "average_rank"])
def test_less_is_better_for_losses_and_ranks(tmp_path: Path, name: str) -> None:
    saved, _, _ = follow(tmp_path, name, [3.0, 2.0, 2.5], None)
    assert saved == [(1, True), (2, True), (3, False)]


def test_a_run_without_progress_ends_and_stays_ended(tmp_path: Path) -> None:
    saved, train_iters, state = follow(tmp_path, "f1", [0.2, 0.1, 0.3, 0.3, 0.2, 0.9], 2)
    assert (train_iters, saved[-1]) == (5, (3, True))
    _, train_iters, _ = follow(tmp_path, "f1", [], 2, {**state, "iteration": 5})
    assert train_iters == 5


def test_a_figure_that_is_not_evaluated(tmp_path: Path) -> None:
    log = MetricsLog(LogConfig(output_dir=str(tmp_path), tensorboard=False), examples_per_step=1, is_main=True)
    log.summarise(1, {"valid_loss": 1.0, "valid_recall@5": 0.5, "num_questions": 7})
    trainer: Any = SimpleNamespace(train_iters=2)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        best = BestFigure("recall", None, log, topology)
        with pytest.raises(ConfigError, match="--best-metric recall: evaluation finds loss, recall@5"):
            best.on_step(trainer, StepReport(1, {}, 0.0))


def test_patience_needs_a_figure() -> None:
    with pytest.raises(ConfigError, match="--early-stopping-patience needs --best-metric"):
        EvalConfig(early_stopping_patience=2)


def _publish(folder: Path, iteration: int, *, is_best: bool) -> None:
    final = folder_of(folder, iteration)
    hidden = folder / f".{final.name}.partial"
    hidden.mkdir()
    manifest = {"kind": "a model", "fingerprint": "", "tp_size": 1, "config": {}, "layouts": {}, "checksums": {}}
    write_manifest(hidden, CheckpointManifest(iteration=iteration, training={}, **manifest))
    publish(hidden, final, iteration, keep_last=1, is_best=is_best)


def test_the_best_checkpoint_is_not_pruned(tmp_path: Path) -> None:
    for iteration, is_best in ((1, False), (2, True), (3, False), (4, False)):
        _publish(tmp_path, iteration, is_best=is_best)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        BEST_NAME, "iter_0000002", "iter_0000004", LATEST_NAME,
    ]  # fmt: skip
    assert resolve_checkpoint(tmp_path / "best") == folder_of(tmp_path, 2)
    assert resolve_checkpoint(tmp_path) == folder_of(tmp_path, 4)
    with pytest.raises(CheckpointError, match="has no part 'reader'"):
        resolve_checkpoint(tmp_path / "best" / "reader")
    shutil.rmtree(folder_of(tmp_path, 2))
    _publish(tmp_path, 5, is_best=False)
    assert resolve_checkpoint(tmp_path) == folder_of(tmp_path, 5)
    (tmp_path / BEST_NAME).unlink()
    with pytest.raises(CheckpointError, match="no best checkpoint here; --best-metric"):
        resolve_checkpoint(tmp_path / "best")
