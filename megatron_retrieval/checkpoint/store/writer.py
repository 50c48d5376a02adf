"""Writes checkpoints: every rank its shard, the folder named only once it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from megatron_retrieval.checkpoint.store.base import BaseCheckpoint
from megatron_retrieval.checkpoint.store.fingerprint import model_fingerprint, shard_digest
from megatron_retrieval.checkpoint.store.manifest import (
    LATEST_NAME,
    CheckpointManifest,
    is_complete,
    read_manifest,
    write_manifest,
)
from megatron_retrieval.checkpoint.store.shard_file import write_shard_file
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.sharding import layout_of
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.files import atomic_file, file_fingerprint


@dataclass(frozen=True)
class ModelPart:
    """A model inside of another, saved as a checkpoint by itself under its attribute's name.

    Attributes:
        config: gives what is needed to build the part again, as it stands at the time of saving.
        assets: contents of further files, by name.
        base: what the part started from; frozen weights that are still the base's are left out. None: all are saved.
    """

    kind: str
    config: Callable[[], dict[str, Any]]
    assets: Mapping[str, bytes]
    base: BaseCheckpoint | None = None


def save_checkpoint(
    directory: str | Path,
    model: nn.Module,
    topology: ProcessTopology,
    *,
    kind: str,
    config: dict[str, Any],
    assets: Mapping[str, bytes],
    iteration: int = 0,
    weight_of: Callable[[str], Tensor] | None = None,
    optimizer_tensors: Mapping[str, Tensor] | None = None,
    training: dict[str, Any] | None = None,
    keep_last: int | None = None,
    parts: Mapping[str, ModelPart] | None = None,
    base: BaseCheckpoint | None = None,
) -> Path:
    """Write one checkpoint; all ranks call this together.

    Args:
        directory: the folder of checkpoints (`--save`).
        assets: contents of further files, by name; not paths, since a run may prune the checkpoint that they came from.
        weight_of: gives a parameter's weights as they are to be stored, where the model holds rounded ones.
        optimizer_tensors: moments named `<moment>.<parameter>`.
        keep_last: remove all but this many newest checkpoints; None keeps all.
        parts: submodules of `model` by attribute, each saved as a checkpoint that can be used without the whole.
        base: as a part's, of what is in no part.

    Returns:
        The folder of this checkpoint; `latest_checkpointed_iteration.txt` names it only once it is whole.
    """
    directory = Path(directory)
    final, partial = directory / f"iter_{iteration:07d}", directory / f".iter_{iteration:07d}.partial"
    if topology.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in (partial, *(partial / name for name in parts or {})):
            folder.mkdir(parents=True)
    topology.barrier()
    weights = {name: weight_of(name) if weight_of else p.detach() for name, p in model.named_parameters()}
    fingerprints = {}
    for name, part in (parts or {}).items():
        own = {key.removeprefix(f"{name}."): weights.pop(key) for key in list(weights) if key.startswith(f"{name}.")}
        described = _Described(part.kind, part.config(), part.assets, iteration, part.base)
        writer = _ModelWriter(partial / name, final / name, model.get_submodule(name), described, topology)
        fingerprints[name] = writer.write(own)
    described = _Described(kind, config, assets, iteration, base, training or {}, fingerprints)
    _ModelWriter(partial, final, model, described, topology).write(weights, optimizer_tensors)
    if topology.is_main:
        _publish(directory, partial, final, iteration, keep_last)
    topology.barrier()
    return final


@dataclass(frozen=True)
class _Described:
    """What a manifest says beside what follows from the weights; `parts` with their fingerprints."""

    kind: str
    config: dict[str, Any]
    assets: Mapping[str, bytes]
    iteration: int
    base: BaseCheckpoint | None
    training: dict[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)


class _ModelWriter:
    """Writes one model and its manifest; all ranks together.

    Args:
        folder: to write to, which becomes `final`.
    """

    def __init__(
        self, folder: Path, final: Path, model: nn.Module, described: _Described, topology: ProcessTopology
    ) -> None:
        self._folder, self._final, self._described, self._topology = folder, final, described, topology
        self._parameters = dict(model.named_parameters())

    def write(self, weights: Mapping[str, Tensor], optimizer_tensors: Mapping[str, Tensor] | None = None) -> str:
        """Write the weights and return the model's fingerprint."""
        checksums: dict[str, str] = {}
        digests: dict[str, int] = {}
        digest = 0
        if self._topology.dp_rank == 0:
            digests = self._shared(weights)
            own = {name: values for name, values in weights.items() if name not in digests}
            digest = sum(digests.values()) + sum(self._digest(name, values) for name, values in own.items())
            checksums = self._write_shard("model", own)
            if optimizer_tensors is not None:
                checksums |= self._write_shard("optimizer", optimizer_tensors)
        written = gather_objects((checksums, digest), self._topology.world_group)
        described = self._described
        fingerprint = model_fingerprint(
            described.kind,
            described.config,
            described.assets.values(),
            (digest for _, digest in written),
            described.parts.values(),
        )
        if self._topology.is_main:
            of_shards = {name: checksum for checksums, _ in written for name, checksum in checksums.items()}
            self._write_manifest(fingerprint, of_shards | self._write_assets(), uses_base=bool(digests))
        return fingerprint

    def _shared(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        """The digests of what the base holds."""
        base = self._described.base
        return base.shared(self._parameters, weights, self._topology) if base else {}

    def _digest(self, name: str, values: Tensor) -> int:
        return shard_digest(name, values, layout_of(self._parameters[name]), self._topology)

    def _write_shard(self, stem: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        path = self._folder / f"{stem}.tp{self._topology.tp_rank}of{self._topology.tp_size}.safetensors"
        return {path.name: write_shard_file(path, tensors)}

    def _write_assets(self) -> dict[str, str]:
        checksums = {}
        for name, content in self._described.assets.items():
            (self._folder / name).write_bytes(content)
            checksums[name] = file_fingerprint(self._folder / name)
        return checksums

    def _write_manifest(self, fingerprint: str, checksums: dict[str, str], *, uses_base: bool) -> None:
        described = self._described
        manifest = CheckpointManifest(
            kind=described.kind,
            iteration=described.iteration,
            config=described.config,
            fingerprint=fingerprint,
            tp_size=self._topology.tp_size,
            layouts={name: layout_of(parameter) for name, parameter in self._parameters.items()},
            checksums=checksums,
            training=described.training,
            parts=tuple(described.parts),
            base=described.base.reference(self._final) if described.base and uses_base else None,
        )
        write_manifest(self._folder, manifest)


def _publish(directory: Path, partial: Path, final: Path, iteration: int, keep_last: int | None) -> None:
    """Give the finished folder its name, point to it, and remove the oldest beyond `keep_last`; bases stay."""
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    with atomic_file(directory / LATEST_NAME) as file:
        file.write(f"{iteration}\n")
    if keep_last is not None:
        finished = sorted(path for path in directory.glob("iter_*") if is_complete(path))
        old = [path for path in finished if path != final][: max(0, len(finished) - keep_last)]
        bases = {base for path in finished if path not in old for base in _bases(path)}
        for path in old:
            if not any(base.is_relative_to(path.resolve()) for base in bases):
                shutil.rmtree(path)


def _bases(folder: Path) -> set[Path]:
    """The checkpoints that one refers to: by itself, by its parts, by its base."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError:  # damaged, and of no use to anybody
        return set()
    bases = {base for part in manifest.parts for base in _bases(folder / part)}
    if manifest.base is None:
        return bases
    base = (folder / manifest.base.path).resolve()
    return {*bases, base, *_bases(base)}
