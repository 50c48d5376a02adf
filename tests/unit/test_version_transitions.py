"""The table of the index's states is the one that its module prints, and every cell of it is what its name says."""

from __future__ import annotations

import re

from megatron_retrieval.refresh import version_transitions as transitions
from megatron_retrieval.refresh.version_transitions import TRANSITIONS, Action, Event, State

#: how the printed table begins what is done
WORDS = {
    "begin": Action.BEGIN,
    "skip": Action.SKIP,
    "wait": Action.WAIT,
    "swap": Action.SWAP,
    "remake": Action.REMAKE,
    "abandon": Action.ABANDON,
    "ask": Action.ASK_AGAIN,
}


def test_the_table_in_the_docstring_is_the_table() -> None:
    printed: dict[State, dict[Event, Action]] = {}
    state = State.SETTLED
    for line in (transitions.__doc__ or "").splitlines():
        row = re.match(r"    (\w*) +(?P<event>[\w ]+?)  +(?P<action>\w+)", line)
        if row is None or row["event"] == "event":
            continue
        state = State[row[1].upper()] if row[1] else state
        printed.setdefault(state, {})[Event[row["event"].upper().replace(" ", "_")]] = WORDS[row["action"]]
    assert printed == TRANSITIONS


def test_every_event_and_every_action_occurs() -> None:
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event)
    assert {action for row in TRANSITIONS.values() for action in row.values()} == set(Action)
    assert set(TRANSITIONS[State.MAKING]) == set(Event), "while a version is made, anything may be seen"
