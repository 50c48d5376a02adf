"""Checkpoints survive a power cut, damage and a full disk: a whole one is always there, and it is found."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from megatron_retrieval.checkpoint.store.folders import LATEST_NAME, holds_checkpoints, resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.checkpoint.store.reader import load_weights
from megatron_retrieval.checkpoint.store.writer import save_checkpoint
from megatron_retrieval.errors import CheckpointError, MegatronRetrievalError
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.runs import flip_byte, rewind
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.training.resume import SaveConfig

ASSETS = {"vocab.txt": b"words"}


def _save(topology: ProcessTopology, folder: Path, value: float, iteration: int, keep_last: int | None = None) -> Path:
    """A checkpoint whose weights are all `value`."""
    model = nn.Linear(64, 4)
    moments = {f"exp_avg.{name}": torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    nn.init.constant_(model.weight, value)
    return save_checkpoint(
        folder, model, topology, kind="tiny", config={}, assets=ASSETS, iteration=iteration,
        optimizer_tensors=moments, training={"identity": {"name": "n" * 3000}}, keep_last=keep_last,
    )  # fmt: skip


def _value(topology: ProcessTopology, folder: Path) -> float:
    model = nn.Linear(64, 4)
    load_weights(folder, read_manifest(folder), model, topology)
    (value,) = set(model.weight.flatten().tolist())
    return float(value)


# -- a power cut


class _PowerCutError(BaseException):
    """Ends the program."""


class _Disk:
    """Stands in for `os.fsync`, `os.replace` and `shutil.rmtree`, and cuts the power before the event of a number.

    What was written and not brought to the disk is then empty, and what was renamed has its old name again unless its
    folder was brought to the disk.
    """

    def __init__(self, patch: pytest.MonkeyPatch, cut_before: int) -> None:
        self._fsync, self._replace, self._rmtree = os.fsync, os.replace, shutil.rmtree
        self._cut_before, self._synced = cut_before, set[int]()
        self._renamed: list[tuple[Path, Path, bytes | None]] = []
        self.events: list[str] = []
        patch.setattr(os, "fsync", self.fsync)
        patch.setattr(os, "replace", self.replace)
        patch.setattr(shutil, "rmtree", self.rmtree)

    def fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self._event("sync", path)
        self._fsync(descriptor)
        self._synced.add(os.fstat(descriptor).st_ino)
        self._renamed = [rename for rename in self._renamed if rename[1].parent != path]

    def replace(self, source: str | Path, target: str | Path) -> None:
        source, target = Path(source), Path(target)
        self._event("rename to", target)
        self._renamed.append((source, target, target.read_bytes() if target.is_file() else None))
        self._replace(source, target)

    def rmtree(self, path: str | Path, ignore_errors: bool = False) -> None:
        self._event("remove", Path(path))
        self._rmtree(path, ignore_errors=ignore_errors)

    def cut(self, folder: Path) -> None:
        """The state in which the next program finds the disk."""
        for source, target, before in reversed(self._renamed):
            if target.exists():  # and was not removed since
                self._replace(target, source)
            if before is not None:
                target.write_bytes(before)
                self._synced.add(target.stat().st_ino)
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_ino not in self._synced:
                path.write_bytes(b"")

    def _event(self, what: str, path: Path) -> None:
        if len(self.events) == self._cut_before:
            raise _PowerCutError
        name = path.name.rpartition(".")[0] if path.name.startswith((".vocab", ".mani", ".latest")) else path.name
        self.events.append(f"{what} {name}")


def _events(topology: ProcessTopology, folder: str) -> list[str]:
    """What happens while the second of two checkpoints is saved, and the first removed."""
    _save(topology, Path(folder), 1.0, 10)
    with pytest.MonkeyPatch.context() as patch:
        disk = _Disk(patch, -1)
        _save(topology, Path(folder), 2.0, 20, keep_last=1)
    return disk.events


def test_order_of_events(tmp_path: Path) -> None:
    """Files and folders are on the disk before the pointer, the pointer before anything is removed."""
    (events,) = run_on_ranks(_events, 1, str(tmp_path / "run"))
    assert events == [
        "sync model.tp0of1.safetensors",
        "sync optimizer.tp0of1.safetensors",
        *("sync .vocab.txt", "rename to vocab.txt", "sync .iter_0000020.partial"),
        *("sync .manifest.json", "rename to manifest.json", "sync .iter_0000020.partial"),
        *("rename to iter_0000020", "sync run"),
        *(f"sync .{LATEST_NAME}", f"rename to {LATEST_NAME}", "sync run"),
        *("remove .iter_0000010.partial", "rename to .iter_0000010.partial", "remove .iter_0000010.partial"),
    ]


def _cut_everywhere(topology: ProcessTopology, root: str, again: bool) -> list[float]:
    """Save 1.0 after 10 steps, then 2.0 after 20 steps (or 10 as well), with the power cut before each event of that.

    Returns:
        What the checkpoint that is found after each cut holds.
    """
    found, number = [], 0
    while len(found) == number:
        folder = Path(root) / str(number)
        with pytest.MonkeyPatch.context() as patch:
            disk = _Disk(patch, -1)
            _save(topology, folder, 1.0, 10)
            disk._cut_before = len(disk.events) + number
            try:
                _save(topology, folder, 2.0, 10 if again else 20, keep_last=1)
                number = -1  # no event is left
            except _PowerCutError:
                disk.cut(folder)
        found.append(_value(topology, resolve_checkpoint(folder, compare_contents=True)))
        _save(topology, folder, 3.0, 30, keep_last=1)
        assert sorted(path.name for path in folder.iterdir()) == ["iter_0000030", LATEST_NAME]
        number += 1
    return found


@pytest.mark.parametrize("again", [False, True])
def test_a_power_cut_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, again: bool) -> None:
    (found,) = run_on_ranks(_cut_everywhere, 1, str(tmp_path), again)
    assert len(found) > 12
    assert set(found) == {1.0, 2.0}
    assert found == sorted(found)  # the new one, once it was found, stays


# -- damage


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints after 10, 20 and 30 steps."""
    folder = tmp_path_factory.mktemp("saved")
    run_on_ranks(_save_three, 1, str(folder))
    return folder


def _save_three(topology: ProcessTopology, folder: str) -> None:
    for iteration in (10, 20, 30):
        _save(topology, Path(folder), float(iteration), iteration)


def _cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


#: what happens to the newest: file, damage, what the warning says, whether contents must be read to see it
DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str, bool]] = {
    "cut off": ("model.tp0of1.safetensors", _cut_off, "damaged or cut off", False),
    "changed": ("model.tp0of1.safetensors", flip_byte, "its checksum is not the manifest's", True),
    "moments changed": ("optimizer.tp0of1.safetensors", flip_byte, "its checksum is not the manifest's", True),
    "asset changed": ("vocab.txt", flip_byte, "its checksum is not the manifest's", False),
    "half a folder": ("optimizer.tp0of1.safetensors", Path.unlink, "missing from the checkpoint", False),
    "no manifest": ("manifest.json", Path.unlink, "holds no manifest.json", False),
    "half a manifest": ("manifest.json", _cut_off, "damaged, or not the manifest of a checkpoint", False),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    name, damage, says, needs_contents = DAMAGE[case]
    folder = shutil.copytree(saved, tmp_path / "run")
    newest = folder / "iter_0000030"
    damage(newest / name)
    for _ in range(3):  # one warning, however often it is asked
        config = SaveConfig(load=str(folder), save=str(folder))
        assert config.whole_resume_folder() == folder / "iter_0000020"
    (record,) = caplog.records
    assert str(newest) in record.message
    assert says in record.message
    assert str(folder / "iter_0000020") in record.message
    assert resolve_checkpoint(folder) == (newest if needs_contents else folder / "iter_0000020")


def test_a_wrong_pointer_is_passed_over(saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = shutil.copytree(saved, tmp_path / "run")
    rewind(folder, 20)
    assert resolve_checkpoint(folder) == folder / "iter_0000020"
    assert not caplog.records
    rewind(folder, 40)
    assert resolve_checkpoint(folder) == folder / "iter_0000030"
    (folder / LATEST_NAME).write_text("newest\n")
    assert resolve_checkpoint(folder) == folder / "iter_0000030"
    (folder / LATEST_NAME).unlink()
    assert resolve_checkpoint(folder) == folder / "iter_0000030"
    says = ["iter_0000040: named by", "expected the number of an iteration", f"{LATEST_NAME}: missing"]
    assert all(text in record.message for text, record in zip(says, caplog.records, strict=True))


def test_what_cannot_be_passed_over_is_refused(saved: Path, tmp_path: Path) -> None:
    """A checkpoint that was asked for by its name, and a folder without any whole one."""
    folder = shutil.copytree(saved, tmp_path / "run")
    asked = SaveConfig(load=str(folder / "iter_0000030"))
    flip_byte(folder / "iter_0000030" / "model.tp0of1.safetensors")
    assert asked.whole_resume_folder() == folder / "iter_0000030"
    (refusal,) = run_on_ranks(_refused, 1, str(folder / "iter_0000030"))
    assert "its checksum is not the manifest's" in refusal
    (folder / "iter_0000030" / "manifest.json").unlink()
    for path in (folder / "iter_0000030", folder / "iter_0000050"):
        with pytest.raises(CheckpointError, match="no checkpoint here"):
            resolve_checkpoint(path)
    for iteration in (10, 20):
        (folder / f"iter_00000{iteration}" / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"iter_0000030.*iter_0000020.*iter_0000010.*holds no whole checkpoint"):
        _ = SaveConfig(load=str(folder), save=str(folder)).resume_folder
    assert SaveConfig(load=str(tmp_path / "new"), save=str(tmp_path / "new")).resume_folder is None


def _refused(topology: ProcessTopology, folder: str) -> str:
    try:
        _value(topology, Path(folder))
    except CheckpointError as error:
        return str(error)
    return ""


def test_whole_checkpoints_alone_count_as_kept(saved: Path, tmp_path: Path) -> None:
    """Damaged ones do not push a whole one out; older damaged ones go, newer ones stay as they are."""
    folder = shutil.copytree(saved, tmp_path / "run")
    _cut_off(folder / "iter_0000020" / "model.tp0of1.safetensors")
    (folder / "iter_0000030").rename(folder / "iter_0000050")
    _cut_off(folder / "iter_0000050" / "model.tp0of1.safetensors")
    run_on_ranks(_save_one, 1, str(folder), 40, 2)
    assert sorted(path.name for path in folder.glob("iter_*")) == ["iter_0000010", "iter_0000040", "iter_0000050"]
    assert resolve_checkpoint(folder) == folder / "iter_0000040"


def _save_one(topology: ProcessTopology, folder: str, iteration: int, keep_last: int) -> None:
    _save(topology, Path(folder), float(iteration), iteration, keep_last)


# -- a disk that refuses


def _limited(topology: ProcessTopology, folder: str, rank: int, num_bytes: int) -> str:
    """Save when one rank can write no file of more than `num_bytes`; the error of this rank."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if topology.rank == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        _save(topology, Path(folder), 40.0, 40, keep_last=1)
    except MegatronRetrievalError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return ""


@pytest.mark.parametrize(("rank", "num_bytes", "file"), [(1, 100, "model.tp1of2"), (0, 2000, "manifest.json")])
def test_a_full_disk_is_said_on_every_rank(saved: Path, tmp_path: Path, rank: int, num_bytes: int, file: str) -> None:
    """Of the checkpoint nothing is left, and older ones are as they were."""
    folder = shutil.copytree(saved, tmp_path / "run")
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    errors = run_on_ranks(_limited, 2, str(folder), rank, num_bytes, tensor_model_parallel_size=2)
    assert errors[0] == errors[1]
    assert file in errors[0]
    assert "cannot be written, it would be larger than a file may be" in errors[0]
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
    assert holds_checkpoints(folder)
    assert resolve_checkpoint(folder, compare_contents=True) == folder / "iter_0000030"
