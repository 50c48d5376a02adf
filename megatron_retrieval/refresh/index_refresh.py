"""The index follows the encoder in training: idle -> embedding -> ready -> swapped, without the trainers waiting.

Every so many steps the encoder is written to disk and embeds the evidence anew: here and now, in a process beside
training, or on ranks of its own (Guu et al. 2020, REALM, arXiv 2002.08909; Sachan et al. 2021, arXiv 2101.00408). The
vectors are a new version on disk (see `IndexVersions`), to which all ranks change after the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.errors import DataError, MismatchError
from megatron_retrieval.index.exact.sharded import ShardedIndex
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.collectives import all_reduce_sum, gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh.config import IndexRefreshConfig
from megatron_retrieval.refresh.index_encoder import IndexEncoder
from megatron_retrieval.refresh.index_opening import VersionInUse, open_given, open_resumed
from megatron_retrieval.refresh.worker_supervisor import WorkerSupervisor
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions
from megatron_retrieval.retrieval.retriever import search_overlap
from megatron_retrieval.training.metrics_log import MetricsLog
from megatron_retrieval.training.resume import saved_states
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer
from megatron_retrieval.utils.logging import get_logger

#: versions of one encoder that may turn out unusable before it is left at the index of the moment
MAX_ATTEMPTS = 3
#: what rank 0 sees of a request
_UNFINISHED, _FINISHED, _GIVEN_UP = 0, 1, 2

log = get_logger("index")


class IndexRefresher(Callback):
    """Gives the run its index, and changes it; all ranks together.

    Args:
        encoder: the encoder in training.
        index_dir: folder of the versions; see `IndexRefreshConfig.folder`.
        swap: is given every index that is to be searched from now on.
        queries: [n, D] this rank's last query vectors, to compare an index with the one before; None: there are none.
        num_compared: passages of each query that are compared.
        start_fingerprint: of the dual encoder that the run starts from, whose vectors --embeddings must be; None: it
            starts from something else.
        save_dir: the run's checkpoints; versions that they name are kept.
        worker_command: starts a process that embeds; for --index-refresh-mode background.
        has_embedding_ranks: ranks of their own embed, whatever --index-refresh-mode says.
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
        self._worker: WorkerSupervisor | None = None
        if config.index_refresh_interval and not self._in_place and not has_embedding_ranks and topology.is_main:
            if worker_command is None:
                raise ValueError("--index-refresh-mode background needs a worker_command")
            self._worker = WorkerSupervisor(worker_command, self._versions, 0, topology.device, clock)
        self._index: ShardedIndex | None = None
        self._current: VersionInUse | None = None
        self._pending: VersionInUse | None = None
        self._iteration = 0

    # -- the callback

    def on_start(self, trainer: Trainer) -> None:
        self._iteration = trainer.iteration
        self._swap(self.start())

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self._iteration = report.iteration
        if self._log.is_due(self._iteration):
            self._log.write(self._iteration, self.staleness())
        if self._worker is not None:
            self._worker.look()
        if self._pending is not None:
            self._follow(self._pending)
        interval = self._config.index_refresh_interval
        if interval is None or self._iteration % interval:
            return
        if self._pending is not None:
            log.info("index version %d is still in the making, no other is begun", self._pending.request.iteration)
        elif self._in_place:
            self._refresh()
        elif self._iteration < trainer.train_iters:
            self._request()

    def on_end(self, trainer: Trainer) -> None:
        if self._worker is not None:
            self._worker.stop()

    # -- the start, and checkpoints

    def start(self) -> ShardedIndex:
        """The index to begin with: the one that a resumed checkpoint names, or the first version."""
        store = self._first_version() if self._current is None else self._resumed_version(self._current.request)
        if self._topology.is_main:
            self._versions.withdraw()  # what an earlier run left
            if self._pending is not None:
                self._versions.request(self._pending.request)
            if self._worker is not None:
                self._worker.look()
        self._index = ShardedIndex(store, self._topology)
        return self._index

    def state(self) -> dict[str, Any]:
        """See `Resumable`: the version in use and the one in the making."""
        now, versions = self._clock(), {"current": self._current, "pending": self._pending}
        return {name: version and version.to_json(now) for name, version in versions.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Resumable`."""
        now = self._clock()
        self._current = VersionInUse.from_json(state["current"], now)
        self._pending = VersionInUse.from_json(state["pending"], now) if state["pending"] else None

    def metrics(self) -> dict[str, float]:
        """Which index is searched, and its `staleness`."""
        assert self._current is not None, "no index has been opened yet"
        return {"index_version": float(self._current.request.iteration), **self.staleness()}

    def staleness(self) -> dict[str, float]:
        """How far the encoder has gone since it made the index: steps and minutes."""
        assert self._current is not None, "no index has been opened yet"
        return {
            "index_staleness_steps": float(self._iteration - self._current.request.iteration),
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
        return open_resumed(self._versions, self._encoder.evidence, request)

    # -- from one version to the next

    def _refresh(self) -> None:
        """Make a version here and now, and change to it."""
        version = self._snapshot()
        store = self._encoder.embed(self._versions, self._iteration, version.request.encoder_fingerprint)
        self._change_to(store, version)

    def _request(self) -> None:
        """Let others make a version."""
        self._pending = self._snapshot()
        if self._topology.is_main:
            self._versions.request(self._pending.request)
        log.info("index version %d is in the making", self._iteration)

    def _snapshot(self) -> VersionInUse:
        made_at = self._clock()
        fingerprint = self._encoder.snapshot(self._versions, self._iteration)
        return VersionInUse(IndexRequest(self._iteration, fingerprint), made_at)

    def _follow(self, pending: VersionInUse) -> None:
        """Rank 0 looks how a request stands, and all ranks do the same about it."""
        seen = self._look(pending.request) if self._topology.is_main else _UNFINISHED
        verdict = torch.tensor(float(seen), device=self._topology.device)
        seen = int(all_reduce_sum(verdict, self._topology.world_group).item())
        if seen == _GIVEN_UP:
            self._abandon(pending.request)
        elif seen == _FINISHED:
            self._take(pending)

    def _look(self, request: IndexRequest) -> int:
        if self._versions.is_complete(request.iteration):
            return _FINISHED
        return _GIVEN_UP if self._versions.is_given_up(request) else _UNFINISHED

    def _take(self, pending: VersionInUse) -> None:
        """Change to a finished version, unless a rank finds it damaged or another encoder's."""
        store, problem = None, ""
        try:
            store = self._versions.open_for(pending.request, self._encoder.evidence.fingerprint)
        except (DataError, MismatchError) as error:
            problem = str(error)
        problems = [found for found in gather_objects(problem, self._topology.world_group) if found]
        if problems or store is None:
            self._refuse(pending, problems[0])
        else:
            self._change_to(store, pending)

    def _refuse(self, pending: VersionInUse, problem: str) -> None:
        """Have a version made again that cannot be used."""
        request = pending.request
        if self._topology.is_main:
            log.warning("index version %d is refused, and made again: %s", request.iteration, problem)
            self._versions.remove(request.iteration)
        if request.attempt == MAX_ATTEMPTS:
            self._abandon(request)
            return
        again = replace(request, attempt=request.attempt + 1)
        self._pending = replace(pending, request=again)
        if self._topology.is_main:
            self._versions.request(again)

    def _abandon(self, request: IndexRequest) -> None:
        self._pending = None
        if self._topology.is_main:
            log.warning("index version %d is not coming; training keeps the index that it has", request.iteration)
            self._versions.withdraw()

    def _change_to(self, store: EmbeddingStore, version: VersionInUse) -> None:
        index = ShardedIndex(store, self._topology)
        assert self._index is not None
        assert self._current is not None
        overlap = search_overlap(self._index, index, self._queries(), self._num_compared, self._topology)
        self._swap(index)
        before, self._index, self._current, self._pending = self._current, index, version, None
        metrics = {**self.metrics(), **overlap}
        self._log.write(self._iteration, metrics)
        log.info("iteration %d: %s", self._iteration, ", ".join(f"{name} {v:.4g}" for name, v in metrics.items()))
        if self._topology.is_main:
            self._versions.withdraw()
            self._prune(before.request.iteration)  # other ranks may be leaving it just now

    def _prune(self, *iterations: int) -> None:
        """Keep these versions, and those that this run or one of its checkpoints may still open."""
        states = [self.state(), *(saved_states(self._save_dir, self.resume_name) if self._save_dir else [])]
        named = {version["iteration"] for state in states for version in state.values() if version is not None}
        self._versions.prune({*named, *iterations})
