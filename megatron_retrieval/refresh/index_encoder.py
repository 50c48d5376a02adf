"""The encoder in training as the maker of index versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.checkpoint.store.writer import save_checkpoint
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore, torch_dtype
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.precision import dtype_of
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.embedder import embed_evidence
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions
from megatron_retrieval.training.steps.step import evaluation_mode
from megatron_retrieval.utils.late_files import seen_late

#: snapshots hold weights in this many bytes each
FP32_BYTES = 4


class IndexEncoder:
    """Saves the current encoder and embeds the evidence with it.

    Args:
        main_weight: the fp32 weights of a parameter of `model`.
        job: embeds the evidence with `model`; each version has a fingerprint of its own.
        config, assets: what checkpoints of the encoder hold beside weights; see `ModelKind.config`.

    Attributes:
        is_wanted: asked after every shard that is embedded; embedding stops where it says no.
    """

    def __init__(
        self,
        model: DualEncoder,
        main_weight: Callable[[str], Tensor],
        job: EmbeddingJob,
        topology: ProcessTopology,
        *,
        config: dict[str, Any],
        assets: Mapping[str, bytes],
    ) -> None:
        self.evidence = job.evidence
        self._model, self._main_weight, self._config, self._assets = model, main_weight, config, assets
        self._job, self._topology = job, topology
        self.is_wanted: Callable[[], bool] = lambda: True

    def snapshot(self, versions: IndexVersions, iteration: int) -> str:
        """Write a checkpoint of the encoder as it is, and clear the place of the version that it makes; a collective
        over all ranks.

        Returns:
            The encoder's fingerprint.
        """
        folder = save_checkpoint(
            versions.snapshots,
            self._model,
            self._topology,
            kind=DUAL_ENCODER.name,
            config=self._config,
            assets=self._assets,
            iteration=iteration,
            weight_of=self._main_weight,
        )
        fingerprint = seen_late(lambda: read_manifest(folder).fingerprint)
        self._make_room(versions, iteration, fingerprint)
        return fingerprint

    def embed(self, versions: IndexVersions, iteration: int, fingerprint: str) -> EmbeddingStore:
        """Make a version with the encoder as it is, without dropout, after its snapshot; a collective over all ranks
        that leaves the model in its mode and the random streams as they were.

        Raises:
            StoppedError: it was not wanted to the end.
        """
        with evaluation_mode(self._model):
            job = replace(self._job, encoder_fingerprint=fingerprint)
            return embed_evidence(job, versions.path(iteration), self._topology, is_wanted=self.is_wanted)

    def embed_again(self, versions: IndexVersions, request: IndexRequest) -> EmbeddingStore:
        """Make a version whose snapshot is there; a collective over all ranks.

        Raises:
            CheckpointError: the snapshot is damaged.
            MismatchError: it is another encoder.
            StoppedError: it was not wanted to the end.
        """
        dtype = dtype_of(self._model)
        loaded = DUAL_ENCODER.load(versions.snapshot(request.iteration), self._topology, dtype)
        found = loaded.description.fingerprint
        if found != request.encoder_fingerprint:
            raise MismatchError(
                f"{versions.snapshot(request.iteration)} holds encoder {found}, but the checkpoint was saved with the "
                f"index of {request.encoder_fingerprint}."
            )
        self._make_room(versions, request.iteration, found)
        job = replace(self._job, encode=loaded.model.encode_passages, encoder_fingerprint=found)
        return embed_evidence(job, versions.path(request.iteration), self._topology, is_wanted=self.is_wanted)

    def version_bytes(self) -> int:
        """Approximate size of a version and its snapshot on disk."""
        vectors = len(self.evidence) * self._model.dimension * torch_dtype(self._job.embedding_dtype).itemsize
        return vectors + FP32_BYTES * self._topology.tp_size * sum(p.numel() for p in self._model.parameters())

    def _make_room(self, versions: IndexVersions, iteration: int, fingerprint: str) -> None:
        if self._topology.is_main:
            versions.make_room(iteration, replace(self._job, encoder_fingerprint=fingerprint).identity)
        self._topology.barrier()
