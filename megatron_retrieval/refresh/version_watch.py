"""The state of the version that is being made, agreed on by all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron_retrieval.errors import DataError, MismatchError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.collectives import all_reduce_sum, gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh.version_transitions import Event
from megatron_retrieval.retrieval.index_versions import IndexRequest, IndexVersions

#: versions of one encoder that may turn out unusable before it is given up
MAX_ATTEMPTS = 3
#: how long a finished version may stay out of another rank's sight; network file systems cache for up to a minute
UNSEEN_SECONDS = 600.0

_EVENTS = tuple(Event)


@dataclass(frozen=True)
class Seen:
    """What was seen.

    Attributes:
        store: the version, opened by this rank; with `Event.OPENED` only.
        problem: what is wrong with it, in a sentence; may be empty.
    """

    event: Event
    store: EmbeddingStore | None = None
    problem: str = ""


class VersionWatch:
    """Looks at a version that was asked for.

    Args:
        clock: seconds.
    """

    def __init__(
        self, versions: IndexVersions, evidence_fingerprint: str, topology: ProcessTopology, clock: Callable[[], float]
    ) -> None:
        self._versions, self._evidence, self._topology, self._clock = versions, evidence_fingerprint, topology, clock
        self._unseen: tuple[IndexRequest, float] | None = None

    def look(self, request: IndexRequest) -> Seen:
        """What all ranks see; a collective. Rank 0 alone decides whether a version is damaged."""
        own = self._look(request) if self._topology.is_main else Seen(Event.UNFINISHED)
        code = float(_EVENTS.index(own.event)) if self._topology.is_main else 0.0
        agreed = all_reduce_sum(torch.tensor(code, device=self._topology.device), self._topology.world_group)
        event = _EVENTS[int(agreed.item())]
        if event is not Event.OPENED:
            return Seen(event, problem=own.problem)
        if not self._topology.is_main:
            own = self._open(request)
        problems = [problem for problem in gather_objects(own.problem, self._topology.world_group) if problem]
        return self._unseen_so_far(request, problems[0]) if problems else own

    def _look(self, request: IndexRequest) -> Seen:
        """What rank 0 sees."""
        versions = self._versions
        if versions.is_complete(request.iteration):
            seen = self._open(request)
            is_last = request.attempt >= MAX_ATTEMPTS and seen.event is not Event.OPENED
            return Seen(Event.USELESS_AGAIN, problem=seen.problem) if is_last else seen
        if versions.is_given_up(request):
            return Seen(Event.GIVEN_UP, problem="the processes that embed have given it up")
        if versions.requested() != request or not versions.snapshot(request.iteration).exists():
            return Seen(Event.GONE, problem=f"{versions.folder} does not hold its request and its encoder any more")
        return Seen(Event.UNFINISHED)

    def _open(self, request: IndexRequest) -> Seen:
        try:
            return Seen(Event.OPENED, self._versions.open_for(request, self._evidence))
        except DataError as error:
            return Seen(Event.DAMAGED, problem=str(error))
        except MismatchError as error:
            return Seen(Event.FOREIGN, problem=str(error))

    def _unseen_so_far(self, request: IndexRequest, problem: str) -> Seen:
        """Another rank cannot open what rank 0 has opened. Rank 0's clock decides how long that is looked at."""
        now = self._clock()
        if self._unseen is None or self._unseen[0] != request:
            self._unseen = request, now
        is_too_long = gather_objects(now - self._unseen[1] >= UNSEEN_SECONDS, self._topology.world_group)[0]
        return Seen(Event.UNSEEN_TOO_LONG if is_too_long else Event.UNSEEN, problem=problem)
