"""Writes one model of a checkpoint: every rank its shard, then one of them the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from megatron_retrieval.checkpoint.store.base import BaseCheckpoint
from megatron_retrieval.checkpoint.store.fingerprint import model_fingerprint, shard_digest
from megatron_retrieval.checkpoint.store.manifest import CheckpointManifest, write_manifest
from megatron_retrieval.checkpoint.store.reader import STATES
from megatron_retrieval.checkpoint.store.shard_file import write_shard_file
from megatron_retrieval.models.sharding import layout_of
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.files import atomic_file, file_fingerprint


@dataclass(frozen=True)
class Described:
    """What a manifest says beside what follows from the weights."""

    kind: str
    config: dict[str, Any]
    assets: Mapping[str, bytes]
    iteration: int
    base: BaseCheckpoint | None
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """What a rank has written of a model: checksums by file, and its part of the digest of the weights."""

    checksums: dict[str, str] = field(default_factory=dict)
    digest: int = 0


class ModelWriter:
    """Writes one model and its manifest. Tensor-parallel ranks make it together.

    Args:
        folder: to write to, which becomes `final`.

    Attributes:
        written: by this rank.
    """

    def __init__(
        self,
        folder: Path,
        final: Path,
        model: nn.Module,
        described: Described,
        weights: Mapping[str, Tensor],
        topology: ProcessTopology,
        optimizer_tensors: Mapping[str, Tensor] | None = None,
        state_tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._folder, self._final, self._described, self._topology = folder, final, described, topology
        self._layouts = {name: layout_of(parameter) for name, parameter in model.named_parameters()}
        self.written = Written()
        self._shared: dict[str, int] = {}
        self._tensors: dict[str, Mapping[str, Tensor]] = {}
        if topology.dp_rank == 0:
            if described.base is not None:
                self._shared = described.base.shared(dict(model.named_parameters()), weights, topology)
            self._tensors["model"] = {name: values for name, values in weights.items() if name not in self._shared}
            if optimizer_tensors is not None:
                self._tensors["optimizer"] = optimizer_tensors
            if state_tensors and topology.tp_rank == 0:
                self._tensors[STATES] = state_tensors

    def copy_tensors(self) -> None:
        """Let the tensors change before they are written."""
        for stem, tensors in self._tensors.items():
            self._tensors[stem] = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def write(self) -> None:
        """Write this rank's shards."""
        own = self._tensors.get("model", {})
        digests = [shard_digest(name, values, self._layouts[name], self._topology) for name, values in own.items()]
        checksums = dict(self._write_shard(stem, tensors) for stem, tensors in self._tensors.items())
        self.written = Written(checksums, sum(self._shared.values()) + sum(digests))
        self._tensors = {}

    def seal(self, written: Sequence[Written], parts: Mapping[str, str]) -> str:
        """On rank 0: write assets and manifest, and bring all names to the disk.

        Args:
            written: by every rank.
            parts: fingerprints of the models that this one is made of.

        Returns:
            The model's fingerprint.
        """
        described, base = self._described, self._described.base
        digests = (of_rank.digest for of_rank in written)
        fingerprint = model_fingerprint(
            described.kind, described.config, described.assets.values(), digests, parts.values()
        )
        checksums = {name: checksum for of_rank in written for name, checksum in of_rank.checksums.items()}
        manifest = CheckpointManifest(
            kind=described.kind,
            iteration=described.iteration,
            config=described.config,
            fingerprint=fingerprint,
            tp_size=self._topology.tp_size,
            layouts=self._layouts,
            checksums=checksums | self._write_assets(),
            training=described.training,
            parts=tuple(parts),
            base=base.reference(self._final) if base and self._shared else None,
        )
        write_manifest(self._folder, manifest)
        return fingerprint

    def _write_shard(self, stem: str, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
        path = self._folder / f"{stem}.tp{self._topology.tp_rank}of{self._topology.tp_size}.safetensors"
        return path.name, write_shard_file(path, tensors)

    def _write_assets(self) -> dict[str, str]:
        checksums = {}
        for name, content in self._described.assets.items():
            with atomic_file(self._folder / name, "wb") as file:
                file.write(content)
            checksums[name] = file_fingerprint(self._folder / name)
        return checksums
