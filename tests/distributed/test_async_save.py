"""A checkpoint that is written while training goes on holds what one that is waited for holds."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException

from megatron_retrieval.checkpoint.store import model_writer
from megatron_retrieval.checkpoint.store.folders import LATEST_NAME, resolve_checkpoint
from megatron_retrieval.errors import MegatronRetrievalError
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.training.made_with import MadeWith
from megatron_retrieval.training.resume import RunCheckpoints, SaveConfig, SavedModel
from megatron_retrieval.utils.disk import writing


class _Run:
    """Three trained numbers and a frozen part."""

    def __init__(self, topology: ProcessTopology, folder: Path, *, async_save: bool) -> None:
        model = nn.Module()
        model.trained, model.frozen = nn.Parameter(torch.ones(3)), nn.Linear(4, 4).requires_grad_(False)
        nn.init.ones_(model.frozen.weight)
        nn.init.ones_(model.frozen.bias)
        self._trained: Any = model.trained
        self._optimizer = Optimizer(DataParallelModel(model, topology), OptimizerConfig(), PrecisionConfig(), topology)
        self.checkpoints = RunCheckpoints(
            model,
            self._optimizer,
            SavedModel("tiny", {}, {"vocab.txt": b"words"}, {}),
            MadeWith({}, {}, {}, {}),
            SaveConfig(save=str(folder), async_save=async_save),
            topology,
        )

    def step(self, iteration: int) -> None:
        self._trained.main_grad.fill_(iteration)
        self._optimizer.step(0.1)


class _Gate:
    """Keeps what runs in a thread from writing until it is opened, and then lets one rank's disk be full."""

    def __init__(self, patch: pytest.MonkeyPatch, *, is_full: bool = False) -> None:
        self._write, self._is_full, self._opened = model_writer.write_shard_file, is_full, threading.Event()
        patch.setattr(model_writer, "write_shard_file", self._wait_and_write)
        self.open = self._opened.set

    def _wait_and_write(self, path: Path, tensors: dict[str, Tensor]) -> str:
        if threading.current_thread() is not threading.main_thread():
            assert self._opened.wait(60)
            if self._is_full:
                with writing(path):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(path, tensors)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _train(topology: ProcessTopology, folder: str, async_save: bool) -> list[str]:
    """Checkpoints after steps 1 and 2 of 3, written after step 3 where that is possible; the folder's names between."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        gate = _Gate(patch)
        run = _Run(topology, Path(folder), async_save=async_save)
        for iteration in (1, 2, 3):
            run.step(iteration)
            run.checkpoints.look()
            if iteration == 2:
                gate.open()
            if iteration < 3:
                run.checkpoints.save(iteration)
            seen.append(resolve_checkpoint(folder).name if (Path(folder) / LATEST_NAME).exists() else "")
        run.checkpoints.finish()
    return seen


def test_it_is_the_same_to_the_bit(tmp_path: Path) -> None:
    """Whatever training has done to the tensors meanwhile; a save waits for the one before."""
    now, later = (
        run_on_ranks(_train, 2, str(tmp_path / name), name == "later", tensor_model_parallel_size=2)
        for name in ("now", "later")
    )
    assert now == [["iter_0000001", "iter_0000002", "iter_0000002"]] * 2
    assert [seen[0] for seen in later] == ["", ""]  # nothing is seen of what is not written yet
    assert _contents(tmp_path / "later") == _contents(tmp_path / "now")
    assert {"iter_0000001/optimizer.tp1of2.safetensors", LATEST_NAME} < _contents(tmp_path / "now").keys()


def _fail(topology: ProcessTopology, folder: str, at_next_save: bool) -> list[Any]:
    """The error of a checkpoint that rank 1 cannot write, and how many steps saw nothing of it."""
    with pytest.MonkeyPatch.context() as patch:
        gate = _Gate(patch, is_full=topology.rank == 1)
        run = _Run(topology, Path(folder), async_save=False)
        run.checkpoints.save(0)
        run = _Run(topology, Path(folder), async_save=True)
        run.checkpoints.save(1)
        run.checkpoints.look()
        gate.open()
        try:
            if at_next_save:
                run.checkpoints.save(2)
            for _ in range(2000):
                run.checkpoints.look()
                time.sleep(0.01)
        except MegatronRetrievalError as error:
            return [type(error).__name__, str(error), threading.active_count()]
    return []


@pytest.mark.parametrize("at_next_save", [False, True])
def test_an_error_of_one_rank_is_raised_on_all(tmp_path: Path, at_next_save: bool) -> None:
    first, second = run_on_ranks(_fail, 2, str(tmp_path), at_next_save, tensor_model_parallel_size=2)
    assert first[:2] == second[:2]
    assert "tp1of2.safetensors: cannot be written, the disk is full" in first[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000000", LATEST_NAME]


def _be_killed(topology: ProcessTopology, folder: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _Gate(patch)
        run = _Run(topology, Path(folder), async_save=False)
        run.checkpoints.save(0)
        run = _Run(topology, Path(folder), async_save=True)
        run.checkpoints.save(1)
        os.kill(os.getpid(), signal.SIGKILL)


def _save_later(topology: ProcessTopology, folder: str) -> None:
    run = _Run(topology, Path(folder), async_save=True)
    run.checkpoints.save(1)
    run.checkpoints.finish()


def test_a_kill_while_it_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_on_ranks(_be_killed, 1, str(tmp_path))
    assert resolve_checkpoint(tmp_path, compare_contents=True) == tmp_path / "iter_0000000"
    run_on_ranks(_save_later, 1, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000000", "iter_0000001", LATEST_NAME]
