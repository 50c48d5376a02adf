"""Checkpoints whose frozen weights others share instead of holding copies of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

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
            if not parameters[name].requires_grad:
                shard = self._reader.shard(name, parameters[name], topology)
                if torch.equal(shard.to(weights[name]), weights[name]):
                    digests[name] = shard_digest(name, shard, layout_of(parameters[name]), topology)
        everywhere = set.intersection(*gather_objects(set(digests), topology.groups.tp))
        return {name: digests[name] for name in everywhere}
