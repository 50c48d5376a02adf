"""What happens to the index between two training steps: states, events, and the action for each pair.

    state      event            action
    ---------  ---------------  -----------------------------------------------------------------------------------
    settled    due              begin a version: write the encoder, let it embed the evidence
               no room          skip: the disk cannot hold another version
    making     due              skip: one version at a time
               no room          skip
               unfinished       wait for the embedders
               opened           swap: every rank searches the new version from the next step on
               unseen           wait: rank 0 can open it, another rank not yet (a network file system's cache)
               unseen too long  abandon, and leave the version on disk
               damaged          remake: rank 0 itself finds a shard missing or cut off
               foreign          remake: rank 0 itself finds another encoder's or another evidence's vectors
               useless again    abandon: it was remade often enough
               given up         abandon: the embedders do not try any more
               gone             begin anew: the request's snapshot or the folder was removed
               resumed          ask again: a checkpoint names it as being made
               resumed alone    abandon: a checkpoint names it, and in this run nobody embeds beside training

Events without a row do not occur in that state. Only rank 0 sees files; what it sees is told to all ranks, so that all
act alike after the same step.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """Whether a version is being made."""

    SETTLED = auto()
    MAKING = auto()


class Event(Enum):
    """What is seen between two steps, or when a run is resumed."""

    DUE = auto()
    NO_ROOM = auto()
    UNFINISHED = auto()
    OPENED = auto()
    UNSEEN = auto()
    UNSEEN_TOO_LONG = auto()
    DAMAGED = auto()
    FOREIGN = auto()
    USELESS_AGAIN = auto()
    GIVEN_UP = auto()
    GONE = auto()
    RESUMED = auto()
    RESUMED_ALONE = auto()


class Action(Enum):
    """What is done about it, by all ranks."""

    BEGIN = auto()
    SKIP = auto()
    WAIT = auto()
    SWAP = auto()
    REMAKE = auto()
    ABANDON = auto()
    ASK_AGAIN = auto()


TRANSITIONS: dict[State, dict[Event, Action]] = {
    State.SETTLED: {
        Event.DUE: Action.BEGIN,
        Event.NO_ROOM: Action.SKIP,
    },
    State.MAKING: {
        Event.DUE: Action.SKIP,
        Event.NO_ROOM: Action.SKIP,
        Event.UNFINISHED: Action.WAIT,
        Event.OPENED: Action.SWAP,
        Event.UNSEEN: Action.WAIT,
        Event.UNSEEN_TOO_LONG: Action.ABANDON,
        Event.DAMAGED: Action.REMAKE,
        Event.FOREIGN: Action.REMAKE,
        Event.USELESS_AGAIN: Action.ABANDON,
        Event.GIVEN_UP: Action.ABANDON,
        Event.GONE: Action.BEGIN,
        Event.RESUMED: Action.ASK_AGAIN,
        Event.RESUMED_ALONE: Action.ABANDON,
    },
}
