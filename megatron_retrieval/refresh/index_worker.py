"""A process that embeds the evidence beside training whenever an index version is requested.

`python -m megatron_retrieval.refresh.index_worker`, started by training itself; see `WorkerSupervisor`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megatron_retrieval.checkpoint.kinds.dual_encoder import LoadedDualEncoder, load_encoder_for
from megatron_retrieval.checkpoint.store.manifest import is_complete
from megatron_retrieval.config.extensions import extension_words
from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.index.store.embedding_store import StorageDtype
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.refresh.config import IndexRefreshConfig
from megatron_retrieval.retrieval.embedder import embed_part
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.signals import end_with_parent

POLL_SECONDS = 0.2
#: of the process and of its session
NICENESS = 10

log = get_logger("index")


@dataclass(kw_only=True, frozen=True)
class IndexWorkerConfig:
    """Embed the evidence with every encoder that a training run requests, until the run ends."""

    index_dir: Path
    """Folder of the index versions and requests."""
    evidence: Path
    """Folder of the evidence (build evidence)."""
    worker: int = 0
    """Number of this process, from 0; the first one finishes versions."""
    num_workers: int = 1
    """Processes that share the work."""
    parent_pid: int
    """Process that started this one; this one ends with it."""
    embedding_dtype: StorageDtype = "float16"
    """Type in which vectors are stored."""
    embedding_threads: int = 1
    """CPU threads."""
    device: str | None = None
    """cpu or cuda; default: cuda where it is available."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How the encoder is run."""


def worker_command(
    config: IndexRefreshConfig,
    *,
    index_dir: str | Path,
    evidence: str | Path,
    precision: PrecisionConfig,
    device: torch.device,
    num_workers: int = 1,
) -> list[str]:
    """The command that starts a worker; `WorkerSupervisor` adds its number and its parent."""
    settings = {
        "index-dir": index_dir,
        "evidence": evidence,
        "num-workers": num_workers,
        "embedding-dtype": config.embedding_dtype,
        "embedding-threads": config.embedding_threads,
        "device": device.type,
        "micro-batch-size": config.index_micro_batch_size,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    words += ["--dtype", precision.named, *["--allow-slow-dtype"] * precision.allow_slow_dtype]
    return [sys.executable, "-m", "megatron_retrieval.refresh.index_worker", *words, *extension_words()]


def main(config: IndexWorkerConfig) -> None:
    end_with_parent(config.parent_pid)
    torch.set_num_threads(config.embedding_threads)
    with process_topology(ParallelConfig(device=config.device)) as topology:
        if topology.device.type == "cpu":
            _give_way()
        serve(config, topology)


def _give_way() -> None:
    """Let training go first where the two share cores. Linux weighs sessions before it weighs processes, so that one of
    this process's own counts as much as that of training, however nice the process is."""
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # kernels without groups of sessions
            Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")


def serve(config: IndexWorkerConfig, topology: ProcessTopology) -> None:
    """Fulfil requests forever."""
    versions, evidence = IndexVersions(config.index_dir), EvidenceStore(config.evidence)
    done: IndexRequest | None = None
    while True:
        request = versions.requested()
        # a network file system may show the request before the encoder
        if request is None or request == done or not is_complete(versions.snapshot(request.iteration)):
            time.sleep(POLL_SECONDS)
            continue
        fulfil(request, versions, evidence, config, topology)
        done = request


def fulfil(
    request: IndexRequest,
    versions: IndexVersions,
    evidence: EvidenceStore,
    config: IndexWorkerConfig,
    topology: ProcessTopology,
) -> None:
    """Do this worker's part of a version; the first worker waits for the others, or until the request is withdrawn.

    Raises:
        CheckpointError: the snapshot is missing or damaged.
        MismatchError: it is not the encoder that was asked for, or of another vocabulary than the evidence.
    """
    started, folder = time.monotonic(), versions.snapshot(request.iteration)
    encoder = load_encoder_for(evidence, folder, topology, config.encode.on(topology.device))
    found = encoder.description.fingerprint
    if found != request.encoder_fingerprint:
        raise MismatchError(f"{folder} holds encoder {found}, but {request.encoder_fingerprint} is asked for.")
    log.info("embedding for index version %d", request.iteration)

    def is_wanted() -> bool:
        return versions.requested() == request

    job = _embedding_job(evidence, encoder, config)
    while is_wanted():
        is_finished = embed_part(
            job,
            versions.path(request.iteration),
            topology,
            worker=config.worker,
            num_workers=config.num_workers,
            is_wanted=is_wanted,
        )
        if is_finished or config.worker > 0:
            log.info("done with index version %d after %.1f s", request.iteration, time.monotonic() - started)
            break
        time.sleep(POLL_SECONDS)
    if topology.device.type == "cuda":
        del encoder, job
        torch.cuda.empty_cache()  # training may need the memory


def _embedding_job(evidence: EvidenceStore, encoder: LoadedDualEncoder, config: IndexWorkerConfig) -> EmbeddingJob:
    return EmbeddingJob(
        evidence=evidence,
        encode=encoder.model.encode_passages,
        text_format=encoder.description.layout,
        encoder_fingerprint=encoder.description.fingerprint,
        embedding_dtype=config.embedding_dtype,
        micro_batch_size=config.encode.micro_batch_size,
    )


if __name__ == "__main__":
    run_program(IndexWorkerConfig, main)
