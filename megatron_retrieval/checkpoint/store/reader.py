"""Reads checkpoints at any layout of ranks, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from megatron_retrieval.checkpoint.store.manifest import CheckpointManifest, check_file, read_manifest
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.sharding import join_shards, shard_of
from megatron_retrieval.parallel.topology import ProcessTopology


class TensorReader:
    """Full tensors of a checkpoint, joined from the shards one at a time.

    Raises:
        CheckpointError: on construction, where a file is missing, damaged or cut off.
    """

    def __init__(self, folder: str | Path, manifest: CheckpointManifest, stem: str = "model") -> None:
        self.folder, self.manifest = Path(folder), manifest
        names = [f"{stem}.tp{rank}of{manifest.tp_size}.safetensors" for rank in range(manifest.tp_size)]
        for name in names:
            check_file(self.folder / name, manifest)
        try:
            self._files = [safe_open(self.folder / name, framework="pt") for name in names]
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder}: damaged {stem} file ({error}).") from error
        with_parts = manifest.parts if stem == "model" else ()
        self._parts = {part: TensorReader(self.folder / part, read_manifest(self.folder / part)) for part in with_parts}

    def names(self) -> set[str]:
        """Of all tensors, those of parts with the part's name before them."""
        of_parts = {f"{part}.{name}" for part, reader in self._parts.items() for name in reader.names()}
        return set(self._files[0].keys()) | of_parts

    def full(self, name: str, parameter: str | None = None) -> Tensor:
        """The full tensor `name`, laid out like `parameter` (default: itself)."""
        part, _, rest = name.partition(".")
        if part in self._parts:
            return self._parts[part].full(rest)
        parts = [file.get_tensor(name) for file in self._files]
        return join_shards(parts, self.manifest.layouts[parameter or name])


def load_weights(
    folder: str | Path, manifest: CheckpointManifest, model: nn.Module, topology: ProcessTopology
) -> dict[str, Tensor]:
    """Fill `model` from a checkpoint saved at any layout.

    Returns:
        This rank's fp32 shards by parameter name, before rounding to the model's dtype.

    Raises:
        CheckpointError: parameters or shapes differ; the message names the first of them.
    """
    reader = TensorReader(folder, manifest)
    return fill_model(model, reader.names(), reader.full, topology, source=str(folder))


def fill_model(
    model: nn.Module, names: Set[str], full: Callable[[str], Tensor], topology: ProcessTopology, *, source: str
) -> dict[str, Tensor]:
    """Cut full tensors for this rank and put them into `model`.

    Args:
        names: the tensors at hand; they must be those of the model's parameters.
        full: gives one of them.
        source: where they come from, for errors.

    Returns:
        This rank's shards by parameter name, before rounding to the model's dtype.

    Raises:
        CheckpointError: parameters or shapes differ; the message names the first of them.
    """
    parameters = dict(model.named_parameters())
    if difference := sorted(names ^ parameters.keys()):
        owner = "the checkpoint" if difference[0] in names else "the model"
        raise CheckpointError(f"{source}: {len(difference)} parameters differ; {difference[0]} is only in {owner}.")
    shards = {}
    for name, parameter in parameters.items():
        try:
            shards[name] = shard_of(full(name), parameter, topology.tp_rank, topology.tp_size)
        except ValueError as error:
            raise CheckpointError(f"{source}: {name} does not fit the model: {error}.") from error
        with torch.no_grad():
            parameter.copy_(shards[name])
    return shards


def load_moments(
    folder: str | Path, manifest: CheckpointManifest, model: nn.Module, topology: ProcessTopology
) -> dict[str, Tensor]:
    """This rank's shards of the optimizer's moments, from a checkpoint saved at any layout."""
    reader = TensorReader(folder, manifest, "optimizer")
    parameters = dict(model.named_parameters())
    shards = {}
    for name in reader.names():
        parameter = name.split(".", 1)[1]
        shards[name] = shard_of(reader.full(name, parameter), parameters[parameter], topology.tp_rank, topology.tp_size)
    return shards
