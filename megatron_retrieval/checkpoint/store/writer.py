"""Writes checkpoints: every rank its shard, the folder named only once it is whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from megatron_retrieval.checkpoint.store.manifest import FORMAT_VERSION, LATEST_NAME, CheckpointManifest
from megatron_retrieval.models.sharding import gather_full, layout_of
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.files import atomic_file, file_fingerprint, write_json


@dataclass(frozen=True)
class ModelPart:
    """A model inside of another, saved as a checkpoint by itself under its attribute's name.

    Attributes:
        config: gives what is needed to build the part again, as it stands at the time of saving.
        assets: contents of further files, by name.
    """

    kind: str
    config: Callable[[], dict[str, Any]]
    assets: Mapping[str, bytes]


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
) -> Path:
    """Write one checkpoint; all ranks call this together.

    Args:
        directory: the folder of checkpoints (`--save`).
        assets: contents of further files, by name; not paths, since a run may prune the checkpoint that they came from.
        weight_of: gives the fp32 weights of a parameter where the model holds rounded ones.
        optimizer_tensors: moments named `<moment>.<parameter>`.
        keep_last: remove all but this many newest checkpoints; None keeps all.
        parts: submodules of `model` by attribute, each saved as a checkpoint that can be used without the whole.

    Returns:
        The folder of this checkpoint; `latest_checkpointed_iteration.txt` names it only once it is whole.
    """
    directory = Path(directory)
    final, partial = directory / f"iter_{iteration:07d}", directory / f".iter_{iteration:07d}.partial"
    if topology.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    topology.barrier()
    weights = {name: (weight_of(name) if weight_of else p.detach()).float() for name, p in model.named_parameters()}
    fingerprints = {}
    for name, part in (parts or {}).items():
        own = {key.removeprefix(f"{name}."): weights.pop(key) for key in list(weights) if key.startswith(f"{name}.")}
        described = _Described(part.kind, part.config(), part.assets, iteration)
        fingerprints[name] = _write_model(partial / name, model.get_submodule(name), own, described, topology)
    described = _Described(kind, config, assets, iteration, training or {}, fingerprints)
    _write_model(partial, model, weights, described, topology, optimizer_tensors)
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
    training: dict[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)


def _write_model(
    folder: Path,
    model: nn.Module,
    weights: Mapping[str, Tensor],
    described: _Described,
    topology: ProcessTopology,
    optimizer_tensors: Mapping[str, Tensor] | None = None,
) -> str:
    """Write weights of `model` with their manifest; a collective that returns the fingerprint."""
    if topology.is_main:
        folder.mkdir(exist_ok=True)
    topology.barrier()
    fingerprint = _fingerprint(model, weights, topology, described)
    checksums = {}
    if topology.dp_rank == 0:
        checksums = _write_shard(folder, "model", weights, topology)
        if optimizer_tensors is not None:
            checksums |= _write_shard(folder, "optimizer", optimizer_tensors, topology)
    all_checksums = {
        name: value for part in gather_objects(checksums, topology.world_group) for name, value in part.items()
    }
    if topology.is_main:
        for name, content in described.assets.items():
            (folder / name).write_bytes(content)
            all_checksums[name] = file_fingerprint(folder / name)
        manifest = CheckpointManifest(
            kind=described.kind,
            iteration=described.iteration,
            config=described.config,
            fingerprint=fingerprint,
            tp_size=topology.tp_size,
            layouts={name: layout_of(p) for name, p in model.named_parameters()},
            checksums=all_checksums,
            training=described.training,
            parts=tuple(described.parts),
        )
        write_json(folder / "manifest.json", {"format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)})
    return fingerprint


def _write_shard(folder: Path, stem: str, tensors: Mapping[str, Tensor], topology: ProcessTopology) -> dict[str, str]:
    path = folder / f"{stem}.tp{topology.tp_rank}of{topology.tp_size}.safetensors"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    return {path.name: file_fingerprint(path)}


def _fingerprint(
    model: nn.Module, weights: Mapping[str, Tensor], topology: ProcessTopology, described: _Described
) -> str:
    digest = hashlib.sha256(json.dumps([described.kind, described.config], sort_keys=True).encode())
    for content in described.assets.values():
        digest.update(content)
    parameters = dict(model.named_parameters())
    for name in sorted(weights):
        full = gather_full(parameters[name], topology, weights[name])
        digest.update(name.encode())
        digest.update(full.cpu().contiguous().numpy().tobytes())
    for fingerprint in described.parts.values():
        digest.update(fingerprint.encode())
    return digest.hexdigest()[:16]


def _publish(directory: Path, partial: Path, final: Path, iteration: int, keep_last: int | None) -> None:
    """Give the finished folder its name, point to it, and remove the oldest beyond `keep_last`."""
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    with atomic_file(directory / LATEST_NAME) as file:
        file.write(f"{iteration}\n")
    if keep_last is not None:
        finished = sorted(path for path in directory.glob("iter_*") if (path / "manifest.json").is_file())
        for old in [path for path in finished if path != final][: max(0, len(finished) - keep_last)]:
            shutil.rmtree(old)
