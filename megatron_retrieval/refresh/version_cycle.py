"""From one version of the index to the next: does what the table of transitions says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.collectives import any_rank
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh.index_encoder import IndexEncoder
from megatron_retrieval.refresh.starting_index import VersionInUse
from megatron_retrieval.refresh.version_transitions import TRANSITIONS, Action, Event, State
from megatron_retrieval.refresh.version_watch import Seen, VersionWatch
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions
from megatron_retrieval.utils.logging import get_logger

log = get_logger("index")


class VersionCycle:
    """Has versions made and changes to them; every method is a collective over all ranks.

    Args:
        in_place: a version is made at once, by all ranks; else others are asked for it.
        change: is given every version that is to be searched from now on.
        clock: seconds.

    Attributes:
        iteration: steps taken so far.
        pending: the version that is being made.
    """

    def __init__(
        self,
        encoder: IndexEncoder,
        versions: IndexVersions,
        topology: ProcessTopology,
        *,
        in_place: bool,
        change: Callable[[EmbeddingStore, VersionInUse], None],
        clock: Callable[[], float],
    ) -> None:
        self._encoder, self._versions, self._topology = encoder, versions, topology
        self._in_place, self._change, self._clock = in_place, change, clock
        self._watch = VersionWatch(versions, encoder.evidence.fingerprint, topology, clock)
        self.iteration = 0
        self.pending: VersionInUse | None = None

    def look(self) -> None:
        """Check the version that is being made, and act on its state."""
        if self.pending is not None:
            self._act(self._watch.look(self.pending.request))

    def due(self) -> None:
        """Another version is due."""
        self._act(self._room())

    def resume(self, pending: VersionInUse, *, somebody_embeds: bool) -> None:
        """A checkpoint was saved while `pending` was being made.

        Args:
            somebody_embeds: beside training, in this run.
        """
        self.pending = pending
        if somebody_embeds:
            self._act(Seen(Event.RESUMED))
        else:
            self._act(Seen(Event.RESUMED_ALONE, problem="nobody embeds beside training in this run"))

    def _act(self, seen: Seen) -> None:
        """Do what the table of transitions says; all ranks saw the same."""
        state = State.SETTLED if self.pending is None else State.MAKING
        {
            Action.BEGIN: self._begin,
            Action.SKIP: self._skip,
            Action.WAIT: lambda seen: None,
            Action.SWAP: self._take,
            Action.REMAKE: self._remake,
            Action.ABANDON: self._abandon,
            Action.ASK_AGAIN: lambda seen: self._ask(self._in_the_making()),
        }[TRANSITIONS[state][seen.event]](seen)

    def _room(self) -> Seen:
        """Whether the disk can hold another version."""
        needed = free = 0
        if self._topology.is_main:
            self._versions.folder.mkdir(parents=True, exist_ok=True)
            needed, free = self._encoder.version_bytes(), shutil.disk_usage(self._versions.folder).free
        if not any_rank(needed > free, self._topology.world_group, self._topology.device):
            return Seen(Event.DUE)
        return Seen(Event.NO_ROOM, problem=f"{self._versions.folder} has {free:,} bytes left, it needs {needed:,}")

    def _begin(self, seen: Seen) -> None:
        """Write the encoder, and make a version with it: here and now, or by others."""
        if seen.problem and self._topology.is_main:
            log.warning("%s; a new one is begun", seen.problem)
        made_at = self._clock()
        fingerprint = self._encoder.snapshot(self._versions, self.iteration)
        version = VersionInUse(IndexRequest(self.iteration, fingerprint), made_at)
        if self._in_place:
            self._change(self._encoder.embed(self._versions, self.iteration, fingerprint), version)
            return
        self._ask(version)
        log.info("index version %d is being made", self.iteration)

    def _ask(self, version: VersionInUse) -> None:
        """Let others make a version."""
        self.pending = version
        if self._topology.is_main:
            self._versions.request(version.request)

    def _skip(self, seen: Seen) -> None:
        if self.pending is not None:
            log.info("index version %d is still being made, no other is begun", self.pending.request.iteration)
        elif self._topology.is_main:
            log.warning("no index version is made at step %d: %s", self.iteration, seen.problem)

    def _take(self, seen: Seen) -> None:
        assert seen.store is not None
        self._change(seen.store, self._in_the_making())

    def _remake(self, seen: Seen) -> None:
        """Have a version made again that cannot be used."""
        pending = self._in_the_making()
        request = replace(pending.request, attempt=pending.request.attempt + 1)
        if self._topology.is_main:
            log.warning("index version %d is refused, and made again: %s", request.iteration, seen.problem)
            self._versions.remove(request.iteration)
        self._ask(replace(pending, request=request))

    def _abandon(self, seen: Seen) -> None:
        iteration = self._in_the_making().request.iteration
        self.pending = None
        if self._topology.is_main:
            reason = f": {seen.problem}" if seen.problem else ""
            log.warning("index version %d is given up; training keeps the index that it has%s", iteration, reason)
            self._versions.withdraw()

    def _in_the_making(self) -> VersionInUse:
        assert self.pending is not None, "no version is being made"
        return self.pending
