"""Saving and resuming a training run: weights, optimizer, and the names of its data position and random streams.

Batches, hard negatives and dropout are functions of (seed, iteration, ...), so the number of steps taken and the
seed are the whole of the data position and of the random state.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from megatron_retrieval.checkpoint.store.base import BaseCheckpoint
from megatron_retrieval.checkpoint.store.folders import holds_checkpoints, resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.checkpoint.store.reader import SavedMoments, load_weights, read_state_tensors
from megatron_retrieval.checkpoint.store.writer import ModelPart, UnfinishedCheckpoint, begin_checkpoint
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.marks import FREE
from megatron_retrieval.errors import CheckpointError, RunDivergedError
from megatron_retrieval.models.adapters import hold_once
from megatron_retrieval.models.sharding import layout_of
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.optimizer import Optimizer
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.made_with import MadeWith
from megatron_retrieval.utils.logging import get_logger

log = get_logger("checkpoint")

#: where a manifest's training state keeps the states of `Resumable`s
STATES_KEY = "states"


@dataclass(kw_only=True, frozen=True)
class SaveConfig(Checked):
    """Checkpoints of a training run."""

    load: str | None = field(default=None, metadata=FREE)
    """Folder of checkpoints to resume from: weights, optimizer, position in the data. May equal --save, and then be
    empty at the first start."""
    save: str | None = field(default=None, metadata=FREE)
    """Folder to write checkpoints to."""
    save_interval: PositiveInt = 500
    """Iterations between two checkpoints; one more is written at the end and at a stop signal."""
    keep_last: PositiveInt | None = None
    """Keep only this many newest checkpoints; default: all."""
    accept_changes: bool = field(default=False, metadata=FREE)
    """Resume although what training learns from has changed, which is refused otherwise: contents of data, evidence or
    vocabulary, weights to start from, seed, global batch size, objective. The log names the changes."""
    async_save: bool = field(default=False, metadata=FREE)
    """Write checkpoints from a copy in CPU memory while training goes on. One appears after the first step at which all
    ranks have written their part of it."""

    @cached_property
    def resume_folder(self) -> Path | None:
        """The checkpoint to resume from, as it is when first asked for; None at the first start.

        Raises:
            CheckpointError: --load names a folder without whole checkpoint, and either it is not --save or damaged
                ones are there.
        """
        if self.load is None or (self.load == self.save and not holds_checkpoints(self.load)):
            return None
        return resolve_checkpoint(self.load)

    def whole_resume_folder(self) -> Path | None:
        """As `resume_folder`, with the contents of every file compared with its checksum."""
        if self.load is None or self.resume_folder is None:
            return None
        return resolve_checkpoint(self.load, compare_contents=True)


@dataclass(frozen=True)
class SavedModel:
    """What a checkpoint of this run holds beside tensors.

    Attributes:
        identity: see `MadeWith`; seed and global batch size are added.
        parts: models that this one is made of and that are of use without it, see `begin_checkpoint`.
        base: what the model started from, if checkpoints are to leave out what they have in common with it.
    """

    kind: str
    config: dict[str, Any]
    assets: dict[str, bytes]
    identity: dict[str, Any]
    parts: Mapping[str, ModelPart] = field(default_factory=dict)
    base: BaseCheckpoint | None = None


@runtime_checkable
class Resumable(Protocol):
    """What has a state beyond weights, optimizer and position in the data."""

    resume_name: str
    """Names the state in the checkpoints' manifests."""

    def state(self) -> dict[str, Any]:
        """The state in JSON values; called on every rank, rank 0's is kept."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave; called before the first step, where a run is resumed."""
        ...


@runtime_checkable
class HoldsTensors(Resumable, Protocol):
    """What has a state with tensors beside JSON values, the same on all ranks."""

    def state_tensors(self) -> Mapping[str, Tensor]: ...

    def restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """After `restore`; on the CPU, or none where `state_tensors` gave none."""
        ...


class RunCheckpoints:
    """Writes a run's checkpoints and continues from one.

    Args:
        resumables: what keeps a state of its own in the checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        saved: SavedModel,
        made_with: MadeWith,
        config: SaveConfig,
        topology: ProcessTopology,
        resumables: Sequence[Resumable] = (),
    ) -> None:
        self._model, self._optimizer, self._saved, self._config = model, optimizer, saved, config
        self._made_with, self._topology, self._resumables = made_with, topology, resumables
        self._unfinished: UnfinishedCheckpoint | None = None

    def save(self, iteration: int, *, is_best: bool = False) -> None:
        """Write the state after `iteration` steps, or begin to; all ranks together. Training goes on from what was
        written.

        Args:
            is_best: it stays as long as none is better.

        Raises:
            CheckpointError, DiskError: on all ranks, where this one or the one before cannot be written.
            RunDivergedError: a weight is not finite; nothing is written.
        """
        self.finish()
        assert self._config.save is not None
        whole = [name for name, parameter in self._model.named_parameters() if layout_of(parameter).dim is None]
        self._optimizer.equalise(whole, self._topology.groups.tp)
        self._require_finite(iteration)
        self._unfinished = begin_checkpoint(
            self._config.save,
            self._model,
            self._topology,
            kind=self._saved.kind,
            config=self._saved.config,
            assets=self._saved.assets,
            iteration=iteration,
            weight_of=self._optimizer.main_weight,
            optimizer_tensors=self._optimizer.state_tensors(),
            state_tensors={
                f"{owner.resume_name}.{name}": tensor
                for owner in self._resumables
                if isinstance(owner, HoldsTensors)
                for name, tensor in owner.state_tensors().items()
            },
            training={
                **self._made_with.to_json(),
                "optimizer": self._optimizer.state_scalars(),
                "consumed_batches": iteration,
                STATES_KEY: {resumable.resume_name: resumable.state() for resumable in self._resumables},
            },
            keep_last=self._config.keep_last,
            is_best=is_best,
            parts=self._saved.parts,
            base=self._saved.base,
            from_copies=self._config.async_save,
        )
        if self._config.async_save:
            self._unfinished.begin_writing()
        else:
            self._unfinished.write()
            self.finish()

    def look(self) -> None:
        """Let the checkpoint that is being written appear, once it is; all ranks together, after every step.

        Raises:
            CheckpointError, DiskError: on all ranks, where it cannot be written.
        """
        if self._unfinished is not None and self._unfinished.is_written():
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one; otherwise as `look`."""
        if self._unfinished is not None:
            unfinished, self._unfinished = self._unfinished, None
            log.info("saved %s", unfinished.finish())

    def _require_finite(self, iteration: int) -> None:
        """Weights that no loss shows to be ruined would replace good checkpoints."""
        weights = {name: self._optimizer.main_weight(name) for name, _ in self._model.named_parameters()}
        sums = torch.stack([weight.float().sum() for weight in weights.values()]).tolist()  # one wait for all
        ruined = [name for name, total in zip(weights, sums, strict=True) if not math.isfinite(total)]
        if found := [name for names in gather_objects(ruined, self._topology.world_group) for name in names]:
            raise RunDivergedError(
                f"iteration {iteration}: the weights of {found[0]} are not finite, and are not saved. Lower --lr and "
                "resume an earlier checkpoint."
            )

    def resume(self, folder: Path) -> int:
        """Continue from a checkpoint saved at any layout of ranks.

        Returns:
            The steps taken so far.

        Raises:
            CheckpointError: it does not fit the model.
            ConfigError: see `MadeWith.require_unchanged`.
        """
        manifest = read_manifest(folder)
        training = manifest.training
        if not training:
            raise CheckpointError(
                f"{folder}: has no optimizer state, so no run can be resumed from it; start one with "
                "--pretrained-checkpoint instead of --load."
            )
        self._made_with.require_unchanged(training, folder, accept_changes=self._config.accept_changes)
        load_weights(folder, manifest, self._model, self._topology, take=self._optimizer.load_main_weight)
        hold_once(self._model)
        self._optimizer.load_state(SavedMoments(folder, manifest, self._model, self._topology), training["optimizer"])
        states = training.get(STATES_KEY, {})
        for resumable in self._resumables:
            if resumable.resume_name in states:
                resumable.restore(states[resumable.resume_name])
                if isinstance(resumable, HoldsTensors):
                    prefix = f"{resumable.resume_name}."
                    found = read_state_tensors(folder, manifest).items()
                    own = {key.removeprefix(prefix): value for key, value in found if key.startswith(prefix)}
                    resumable.restore_tensors(own)
        log.info("resumed %s: %d steps taken", folder, manifest.iteration)
        return manifest.iteration


def saved_states(directory: str | Path, resume_name: str) -> list[dict[str, Any]]:
    """What a `Resumable` of this name left in the checkpoints of a folder; those that cannot be read have none."""
    states = []
    for path in sorted(Path(directory).glob("iter_*/manifest.json")):
        with contextlib.suppress(CheckpointError):
            states.append(read_manifest(path.parent).training.get(STATES_KEY, {}).get(resume_name))
    return [state for state in states if state is not None]
