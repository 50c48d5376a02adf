"""Opens the index that a run begins with: --embeddings, or the version of the resumed checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from megatron_retrieval.errors import CheckpointError, ConfigError, DataError, MismatchError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.collectives import gather_objects, on_first_rank
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh.index_encoder import IndexEncoder
from megatron_retrieval.retrieval.embedding_job import TokenizedEvidence
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions
from megatron_retrieval.utils.logging import get_logger

log = get_logger("index")


@dataclass(frozen=True)
class VersionInUse:
    """A version that is searched or is being made.

    Attributes:
        made_at: when its encoder was written, in seconds of a clock that another process does not share.
    """

    request: IndexRequest
    made_at: float

    def to_json(self, now: float) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {**vars(self.request), "age_seconds": now - self.made_at}

    @classmethod
    def from_json(cls, saved: dict[str, Any], now: float) -> Self:
        """The inverse of `to_json`, as if no time had passed."""
        request = {name: value for name, value in saved.items() if name != "age_seconds"}
        return cls(IndexRequest(**request), now - saved["age_seconds"])


def open_given(
    embeddings: str | Path,
    evidence: TokenizedEvidence,
    encoder_fingerprint: str | None,
    *,
    flag: str = "--embeddings",
) -> EmbeddingStore:
    """Open the embeddings that a flag names.

    Args:
        encoder_fingerprint: of the dual encoder that the run started from; None: it started from something else.

    Raises:
        ConfigError: there is no encoder whose embeddings these could be.
        DataError, MismatchError: the embeddings are damaged, or of another evidence or encoder.
    """
    if encoder_fingerprint is None:
        raise ConfigError(
            f"{flag} {embeddings}: training does not start from a dual encoder's checkpoint, so no embeddings "
            "can be its own; leave the flag out, and the evidence is embedded before the first step."
        )
    store = EmbeddingStore(embeddings)
    store.require(evidence_fingerprint=evidence.fingerprint, encoder_fingerprint=encoder_fingerprint)
    if size := store.manifest.identity.embedding_size:
        raise MismatchError(
            f"The embeddings in {embeddings} are cut to {size} numbers, and training searches whole vectors: embed the "
            f"evidence without --embedding-size, or leave {flag} out."
        )
    return store


def lock_versions(versions: IndexVersions, topology: ProcessTopology) -> IO[str] | None:
    """Rank 0 keeps other runs out of the folder; a collective.

    Returns:
        What holds the lock until it is closed; None on other ranks.

    Raises:
        ConfigError: on all ranks, where another run has it.
    """
    return on_first_rank(versions.lock, topology.world_group)


def open_resumed(
    versions: IndexVersions, encoder: IndexEncoder, request: IndexRequest, topology: ProcessTopology
) -> EmbeddingStore:
    """The version that a checkpoint was saved with; where it is gone or damaged, its encoder makes it again. A
    collective.

    Raises:
        CheckpointError: it cannot be opened or made; the message says what to do.
    """
    problem, has_encoder = "", versions.snapshot(request.iteration).exists()
    if topology.is_main:
        try:
            versions.open_for(request, encoder.evidence.fingerprint)
        except (DataError, MismatchError) as error:
            problem = str(error)
    # what rank 0 sees decides: another node's view of a network file system may be older
    problem, has_encoder = gather_objects((problem, has_encoder), topology.world_group)[0]
    if not problem:
        store = versions.open_for(request, encoder.evidence.fingerprint)
        problem = _damage(store, topology)
        if not problem:
            return store
        if has_encoder and topology.is_main:
            versions.remove(request.iteration)  # its size is right, so that it would count as whole
    if not has_encoder:
        raise CheckpointError(
            f"the checkpoint was saved with index version {request.iteration}, which cannot be opened: {problem} Its "
            f"encoder is gone as well. {_remedy(request.iteration)} --index-dir names the folder of versions."
        )
    log.warning("index version %d cannot be opened, its encoder makes it again: %s", request.iteration, problem)
    return encoder.embed_again(versions, request)


def _damage(store: EmbeddingStore, topology: ProcessTopology) -> str:
    """What is wrong with the contents, read by all ranks together; a collective."""
    problem = ""
    try:
        store.verify(topology.rank, topology.world_size)
    except DataError as error:
        problem = str(error)
    return next((found for found in gather_objects(problem, topology.world_group) if found), "")


def _remedy(iteration: int) -> str:
    if iteration == 0:
        return "Give --embeddings as at the start."
    return "Resume another checkpoint, or start anew with this one as pretrained checkpoint."
