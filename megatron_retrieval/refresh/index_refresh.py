"""Refreshes the index in training (Guu et al. 2020, REALM, arXiv 2002.08909; Sachan et al. 2021, arXiv 2101.00408).

Every so many steps the encoder is saved and the evidence is embedded again: in place, while training waits; by a
process beside training; or by ranks of their own. The vectors are a new version on disk (see `IndexVersions`), and all
ranks switch to it after the same step. `version_transitions` says what happens to a version that is being made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from megatron_retrieval.errors import StoppedError
from megatron_retrieval.index.exact.sharded import ShardedIndex
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh.config import IndexRefreshConfig
from megatron_retrieval.refresh.index_encoder import IndexEncoder
from megatron_retrieval.refresh.starting_index import VersionInUse, lock_versions, open_given, open_resumed
from megatron_retrieval.refresh.version_cycle import VersionCycle
from megatron_retrieval.refresh.worker_supervisor import WorkerSupervisor
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions
from megatron_retrieval.retrieval.retriever import search_overlap
from megatron_retrieval.training.metrics_log import MetricsLog
from megatron_retrieval.training.resume import saved_states
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer
from megatron_retrieval.utils.logging import get_logger

log = get_logger("index")


class IndexRefresher(Callback):
    """Opens the index of a run and refreshes it; all ranks act together.

    Args:
        encoder: the encoder in training.
        index_dir: folder of the versions; see `IndexRefreshConfig.folder`.
        swap: called with every index that is searched from then on.
        queries: [n, D] this rank's last query vectors, to compare an index with the one before; None: no queries.
        num_compared: passages of each query that are compared.
        start_fingerprint: of the dual encoder that the run starts from, which must have made --embeddings; None: it
            starts from no dual encoder.
        save_dir: the run's checkpoints; versions that they name are kept.
        worker_command: starts a process that embeds; for --index-refresh-mode background.
        has_embedding_ranks: ranks of their own embed; --index-refresh-mode is ignored.
        clock: seconds.
    """

    resume_name = "index"

    def __init__(
        self,
        config: IndexRefreshConfig,
        encoder: IndexEncoder,
        topology: ProcessTopology,
        *,
        index_dir: str | Path,
        swap: Callable[[ShardedIndex], None],
        queries: Callable[[], Tensor | None],
        num_compared: int,
        metrics_log: MetricsLog,
        start_fingerprint: str | None = None,
        save_dir: str | Path | None = None,
        worker_command: Sequence[str] | None = None,
        has_embedding_ranks: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._encoder, self._topology = config, encoder, topology
        self._swap, self._queries, self._num_compared, self._log = swap, queries, num_compared, metrics_log
        self._start_fingerprint, self._save_dir, self._clock = start_fingerprint, save_dir, clock
        self._versions = IndexVersions(index_dir)
        self._in_place = config.index_refresh_mode == "in-place" and not has_embedding_ranks
        self._cycle = VersionCycle(
            encoder, self._versions, topology, in_place=self._in_place, change=self._change_to, clock=clock
        )
        self._worker: WorkerSupervisor | None = None
        if config.index_refresh_interval and not self._in_place and not has_embedding_ranks and topology.is_main:
            if worker_command is None:
                raise ValueError("--index-refresh-mode background needs a worker_command")
            if topology.device.type == "cuda":
                log.warning(
                    "--index-refresh-mode background embeds on rank 0's GPU, in memory that training leaves free; "
                    "--num-embedding-ranks embeds on GPUs of its own"
                )
            self._worker = WorkerSupervisor(
                worker_command,
                self._versions,
                0,
                topology.device,
                timeout_seconds=60 * config.embedding_timeout_minutes,
                clock=clock,
            )
        self._lock: IO[str] | None = None
        self._index: ShardedIndex | None = None
        self._current: VersionInUse | None = None
        self._last_state: dict[str, Any] = {}  # of a checkpoint that may still be on its way to the disk

    # -- the callback

    def on_start(self, trainer: Trainer) -> None:
        self._cycle.iteration = trainer.iteration
        self._encoder.is_wanted = lambda: not trainer.stop.received
        try:
            self._swap(self.start())
        except StoppedError:
            self.on_end(trainer)
            raise
        self._encoder.is_wanted = lambda: True  # a refresh that is left would not be made again

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self._cycle.iteration = iteration = report.iteration
        if self._log.is_due(iteration):
            self._log.write(iteration, self.staleness())
        if self._worker is not None:
            self._worker.look()
        self._cycle.look()
        interval = self._config.index_refresh_interval
        if interval is None or iteration % interval:
            return
        if self._in_place or iteration < trainer.train_iters:
            self._cycle.due()

    def on_end(self, trainer: Trainer) -> None:
        if self._worker is not None:
            self._worker.stop()
        if self._lock is not None:
            self._lock.close()

    def on_divergence(self, trainer: Trainer) -> None:
        self.on_end(trainer)

    # -- the start, and checkpoints

    def start(self) -> ShardedIndex:
        """The index to begin with: the one that a resumed checkpoint names, or the first version.

        Raises:
            ConfigError: another run uses the folder of versions.
            CheckpointError: the version that a checkpoint names is gone, and its encoder as well.
        """
        self._lock = lock_versions(self._versions, self._topology)
        store = self._first_version() if self._current is None else self._resumed_version(self._current.request)
        if self._topology.is_main:
            self._versions.withdraw()  # what an earlier run left
        if (pending := self._cycle.pending) is not None:
            has_embedder = not self._in_place and self._config.index_refresh_interval is not None
            self._cycle.resume(pending, somebody_embeds=has_embedder)
        if self._worker is not None:
            self._worker.look()
        self._index = ShardedIndex(store, self._topology)
        return self._index

    def state(self) -> dict[str, Any]:
        """See `Resumable`: the version in use and the one that is being made."""
        now, versions = self._clock(), {"current": self._current, "pending": self._cycle.pending}
        self._last_state = {name: version and version.to_json(now) for name, version in versions.items()}
        return self._last_state

    def restore(self, state: dict[str, Any]) -> None:
        """See `Resumable`."""
        now = self._clock()
        self._current = VersionInUse.from_json(state["current"], now)
        self._cycle.pending = VersionInUse.from_json(state["pending"], now) if state["pending"] else None

    def metrics(self) -> dict[str, float]:
        """Which index is searched, and its `staleness`."""
        assert self._current is not None, "no index has been opened yet"
        return {"index_version": float(self._current.request.iteration), **self.staleness()}

    def staleness(self) -> dict[str, float]:
        """How far the encoder has gone since it made the index: steps and minutes."""
        assert self._current is not None, "no index has been opened yet"
        return {
            "index_staleness_steps": float(self._cycle.iteration - self._current.request.iteration),
            "index_staleness_minutes": (self._clock() - self._current.made_at) / 60,
        }

    def _first_version(self) -> EmbeddingStore:
        made_at, given = self._clock(), self._config.embeddings
        if self._topology.is_main:
            self._prune(0)  # an earlier run in this folder may have left versions; its own first one is continued with
        if given is None:
            fingerprint = self._encoder.snapshot(self._versions, 0)
            log.info("embedding the evidence for the first index")
            store = self._encoder.embed(self._versions, 0, fingerprint)
        else:
            store = open_given(given, self._encoder.evidence, self._start_fingerprint)
            fingerprint = store.manifest.identity.encoder_fingerprint
        self._current = VersionInUse(IndexRequest(0, fingerprint), made_at)
        return store

    def _resumed_version(self, request: IndexRequest) -> EmbeddingStore:
        if request.iteration == 0 and self._config.embeddings is not None:
            return open_given(self._config.embeddings, self._encoder.evidence, request.encoder_fingerprint)
        return open_resumed(self._versions, self._encoder, request, self._topology)

    # -- from one version to the next

    def _change_to(self, store: EmbeddingStore, version: VersionInUse) -> None:
        index = ShardedIndex(store, self._topology)
        assert self._index is not None
        assert self._current is not None
        overlap = search_overlap(self._index, index, self._queries(), self._num_compared, self._topology)
        self._swap(index)
        before, self._index, self._current, self._cycle.pending = self._current, index, version, None
        metrics = {**self.metrics(), **overlap}
        self._log.write(self._cycle.iteration, metrics)
        log.info("iteration %d: %s", self._cycle.iteration, ", ".join(f"{name} {v:.4g}" for name, v in metrics.items()))
        if self._topology.is_main:
            self._versions.withdraw()
            self._prune(before.request.iteration)  # other ranks may be leaving it just now

    def _prune(self, *iterations: int) -> None:
        """Keep the newest versions up to the bound, this run's and these among them, and the encoders of all that a
        checkpoint names: from these a version is embedded again where its checkpoint is resumed."""
        own = [version.request.iteration for version in (self._current, self._cycle.pending) if version is not None]
        saved = saved_states(self._save_dir, self.resume_name) if self._save_dir else []
        needed = {*own, *iterations}
        others = sorted(_named(saved) - needed, reverse=True)
        kept = {*needed, *others[: max(0, self._config.keep_index_versions - len(needed))]}
        self._versions.prune(kept, snapshots={*kept, *others, *_named([self._last_state])})


def _named(states: Iterable[Mapping[str, Any]]) -> set[int]:
    """The versions that states of a refresher speak of."""
    return {version["iteration"] for state in states for version in state.values() if version is not None}
