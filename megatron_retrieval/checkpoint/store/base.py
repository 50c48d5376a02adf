"""Checkpoints whose frozen weights others share instead of holding copies of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megatron_retrieval.checkpoint.store.fingerprint import shard_digest
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import BaseReference, read_manifest
from megatron_retrieval.checkpoint.store.reader import TensorReader
from megatron_retrieval.models.sharding import layout_of
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology


class BaseCheckpoint:
    """A checkpoint that models start from, opened once for all checkpoints of a run that refer to it.

    Args:
        path: of the checkpoint. References to an absolute path are absolute, others relative to the checkpoint that
            refers, so that both can be moved together.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = resolve_checkpoint(path)
        self._manifest = read_manifest(self.folder)
        self._reader = TensorReader(self.folder, self._manifest)
        self._compared: dict[str, tuple[Any, int | None]] = {}

    def reference(self, folder: Path) -> BaseReference:
        """How the checkpoint in `folder` names this one."""
        path = self.folder if self.folder.is_absolute() else os.path.relpath(self.folder.resolve(), folder.resolve())
        return BaseReference(path=str(path), kind=self._manifest.kind, fingerprint=self._manifest.fingerprint)

    def shared(
        self, parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor], topology: ProcessTopology
    ) -> dict[str, int]:
        """The parameters that need not be saved beside this base: frozen ones that equal the base's, rounded to the
        model's dtype, on every rank. Each has the digest of this rank's shard, as the base has it.

        Tensor-parallel ranks must call this together.

        Args:
            weights: this rank's values, by the parameters' names.
        """
        digests = {}
        for name in weights.keys() & self._reader.names():
            parameter, values = parameters[name], weights[name]
            if parameter.requires_grad:
                continue
            state = (values.data_ptr(), parameter._version)  # as long as it is the same, nothing was written
            if self._compared.get(name, (None, 0))[0] != state:
                shard = self._reader.shard(name, parameter, topology)
                is_equal = torch.equal(shard.to(values), values)
                digest = shard_digest(name, shard, layout_of(parameter), topology) if is_equal else None
                self._compared[name] = state, digest
            if (digest := self._compared[name][1]) is not None:
                digests[name] = digest
        everywhere = set.intersection(*gather_objects(set(digests), topology.groups.tp))
        return {name: digests[name] for name in everywhere}
