"""Reads checkpoints at any layout of ranks, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from megatron_retrieval.checkpoint.store.manifest import CheckpointManifest, check_file, is_complete, read_manifest
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.sharding import join_shards, layout_of, shard_of
from megatron_retrieval.parallel.precision import keep_precise
from megatron_retrieval.parallel.topology import ProcessTopology

#: the file of what is neither weights nor moments
STATES = "states"
#: gives this rank's shard of a parameter's values
GetShard = Callable[[str, nn.Parameter], Tensor]


class TensorReader:
    """The tensors of a checkpoint, whole or cut for this rank; those that its base holds are read from there.

    Attributes:
        parts: of a model made of several, the readers of these.

    Raises:
        CheckpointError: on construction, where a file is missing or the base is not the one that it was; on reading,
            where a file is damaged or cut off.
    """

    def __init__(self, folder: str | Path, manifest: CheckpointManifest, stem: str = "model") -> None:
        self.folder, self.manifest = Path(folder), manifest
        names = [f"{stem}.tp{rank}of{manifest.tp_size}.safetensors" for rank in range(manifest.tp_size)]
        for name in names:
            if not (self.folder / name).is_file():
                raise CheckpointError(f"{self.folder / name}: missing from the checkpoint.")
        self._open = cache(lambda rank: _checked_file(self.folder / names[rank], manifest))
        self._own: set[str] = set(self._open(0).keys())
        with_parts = manifest.parts if stem == "model" else ()
        self.parts = {part: TensorReader(self.folder / part, read_manifest(self.folder / part)) for part in with_parts}
        self._base = open_base(self.folder, manifest) if stem == "model" else None

    def names(self) -> set[str]:
        """Of all tensors, those of parts with the part's name before them."""
        of_parts = {f"{part}.{name}" for part, reader in self.parts.items() for name in reader.names()}
        of_base = self._base.names() & self.manifest.layouts.keys() if self._base else set()
        return self._own | of_parts | of_base

    def own_names(self) -> set[str]:
        """Of the tensors that the checkpoint holds itself, neither in its base nor in a part."""
        return self._own

    def full(self, name: str, parameter: str | None = None) -> Tensor:
        """The full tensor `name`, laid out like `parameter` (default: itself)."""
        reader, key = self._holder(name)
        if reader is not self:
            return reader.full(key)
        shards = [self._open(rank).get_tensor(name) for rank in range(self.manifest.tp_size)]
        return join_shards(shards, self.manifest.layouts[parameter or name])

    def shard(self, name: str, parameter: nn.Parameter, topology: ProcessTopology, like: str | None = None) -> Tensor:
        """What this rank holds of the tensor `name` in the place of `parameter`. Where the checkpoint was saved at the
        same layout, only this rank's file is read.

        Args:
            like: the parameter that the tensor is laid out like; default: itself.

        Raises:
            ValueError: it has another shape.
        """
        reader, key = self._holder(name)
        if reader is not self:
            return reader.shard(key, parameter, topology)
        layout = self.manifest.layouts[like or name]
        if self.manifest.tp_size == topology.tp_size and layout == layout_of(parameter):
            own: Tensor = self._open(topology.tp_rank).get_tensor(name)
            if own.shape == parameter.shape:
                return own
        return shard_of(self.full(name, like), parameter, topology.tp_rank, topology.tp_size)

    def _holder(self, name: str) -> tuple[TensorReader, str]:
        """Who reads a tensor, and under what name."""
        part, _, rest = name.partition(".")
        if part in self.parts:
            return self.parts[part], rest
        return (self._base, name) if self._base and name not in self._own else (self, name)


def _checked_file(path: Path, manifest: CheckpointManifest) -> Any:
    check_file(path, manifest)
    return open_shards(path)


def open_shards(path: Path) -> Any:
    """Open a safetensors file.

    Raises:
        CheckpointError: it is cut off, or its header is damaged.
    """
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path}: the file is damaged or cut off ({error}).") from error


def open_base(folder: Path, manifest: CheckpointManifest) -> TensorReader | None:
    """The tensors of the base that a checkpoint refers to; None where it has no base.

    Raises:
        CheckpointError: the base is missing or another model than it was.
    """
    if (reference := manifest.base) is None:
        return None
    place = folder / reference.path
    hint = f"Put it back, or correct its path in {folder}/manifest.json."
    if not is_complete(place):
        raise CheckpointError(
            f"{folder}: shares weights of the {reference.kind} {reference.fingerprint} in {place}, where no checkpoint "
            f"is. {hint}"
        )
    found = read_manifest(place)
    if (found.kind, found.fingerprint) != (reference.kind, reference.fingerprint):
        raise CheckpointError(
            f"{folder}: shares weights of the {reference.kind} {reference.fingerprint}, but {place} holds the "
            f"{found.kind} {found.fingerprint}. {hint}"
        )
    return TensorReader(place, found)


def load_weights(
    folder: str | Path,
    manifest: CheckpointManifest,
    model: nn.Module,
    topology: ProcessTopology,
    take: Callable[[str, Tensor], None] | None = None,
) -> None:
    """Fill `model` from a checkpoint saved at any layout.

    Args:
        take: is given this rank's shard of every parameter, by its name, before rounding to the model's dtype.

    Raises:
        CheckpointError: parameters or shapes differ; the message names the first of them.
    """
    reader = TensorReader(folder, manifest)

    def shard(name: str, parameter: nn.Parameter) -> Tensor:
        return reader.shard(name, parameter, topology)

    _fill(dict(model.named_parameters()), reader.names(), shard, str(folder), take)


def fill_model(
    model: nn.Module, names: Set[str], full: Callable[[str], Tensor], topology: ProcessTopology, *, source: str
) -> None:
    """`fill_parameters` of all that a model has."""
    fill_parameters(dict(model.named_parameters()), names, full, topology, source=source)


def fill_parameters(
    parameters: Mapping[str, nn.Parameter],
    names: Set[str],
    full: Callable[[str], Tensor],
    topology: ProcessTopology,
    *,
    source: str,
) -> None:
    """Cut full tensors for this rank and put them into a model's parameters, to be trained from there: values that
    their dtype rounds are remembered for the optimizer.

    Args:
        names: the tensors at hand; they must be those of the parameters.
        full: gives one of them.
        source: where they come from, for errors.

    Raises:
        CheckpointError: parameters or shapes differ; the message names the first of them.
    """

    def shard(name: str, parameter: nn.Parameter) -> Tensor:
        return shard_of(full(name), parameter, topology.tp_rank, topology.tp_size)

    _fill(parameters, names, shard, source, take=lambda name, values: keep_precise(parameters[name], values))


def _fill(
    parameters: Mapping[str, nn.Parameter],
    names: Set[str],
    shard: GetShard,
    source: str,
    take: Callable[[str, Tensor], None] | None = None,
) -> None:
    if difference := sorted(names ^ parameters.keys()):
        owner = "the checkpoint" if difference[0] in names else "the model"
        raise CheckpointError(f"{source}: {len(difference)} parameters differ; {difference[0]} is only in {owner}.")
    for name, parameter in parameters.items():
        try:
            values = shard(name, parameter)
        except ValueError as error:
            raise CheckpointError(f"{source}: {name} does not fit the model: {error}.") from error
        if values.is_floating_point() != parameter.is_floating_point():
            raise CheckpointError(f"{source}: {name} is stored as {values.dtype}, where {parameter.dtype} is needed.")
        with torch.no_grad():
            parameter.copy_(values)
        if take is not None:
            take(name, values)


def read_state_tensors(folder: Path, manifest: CheckpointManifest) -> dict[str, Tensor]:
    """The `state_tensors` of a checkpoint, on the CPU; none where it was saved without any.

    Raises:
        CheckpointError: the file is damaged.
    """
    name = f"{STATES}.tp0of{manifest.tp_size}.safetensors"
    if name not in manifest.checksums:
        return {}
    file = _checked_file(folder / name, manifest)
    return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping


class SavedMoments(Mapping[str, Tensor]):
    """This rank's shards of the optimizer's moments, from a checkpoint saved at any layout; each is read when it is
    asked for, by `<moment>.<parameter>`."""

    def __init__(
        self, folder: str | Path, manifest: CheckpointManifest, model: nn.Module, topology: ProcessTopology
    ) -> None:
        self._reader = TensorReader(folder, manifest, "optimizer")
        self._parameters, self._topology = dict(model.named_parameters()), topology

    def __getitem__(self, name: str) -> Tensor:
        parameter = name.split(".", 1)[1]
        return self._reader.shard(name, self._parameters[parameter], self._topology, like=parameter)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.names())

    def __len__(self) -> int:
        return len(self._reader.names())
