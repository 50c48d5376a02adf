"""Settings, time, cost and machines of runs, as rows of tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from megatron_retrieval.reports.run_files import Run

_NONE = "–"
_SECONDS_PER_HOUR = 3600


def settings_that_differ(settings: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """[setting, value of each run] where not all have the same; a run without the setting has a dash."""
    names = dict.fromkeys(name for own in settings for name in own)
    rows = ([name, *(text_of(own[name]) if name in own else _NONE for own in settings)] for name in names)
    return [row for row in rows if len(set(row[1:])) > 1]


def cost_rows(runs: Sequence[Run], price_per_hour: float | None) -> Iterator[list[str]]:
    """How long each run took, on how many devices, and what that costs."""
    yield ["started (UTC)", *map(started, runs)]
    yield ["took", *(_per_run(run, lambda seconds, _: str(timedelta(seconds=round(seconds)))) for run in runs)]
    yield ["processes", *(text_of(run.record.get("world_size")) for run in runs)]
    yield [
        "device hours",
        *(_per_run(run, lambda seconds, ranks: f"{seconds * ranks / _SECONDS_PER_HOUR:.3g}") for run in runs),
    ]
    if price_per_hour is not None:
        price = price_per_hour / _SECONDS_PER_HOUR
        yield ["cost", *(_per_run(run, lambda seconds, ranks: f"{seconds * ranks * price:,.2f}") for run in runs)]
    if any("finished" in run.record for run in runs):  # of training
        yield ["finished", *(text_of(run.record.get("finished")) for run in runs)]


def machine_rows(runs: Sequence[Run]) -> Iterator[list[str]]:
    """What each run ran on, and which code it was; facts that no run has are left out."""
    facts: dict[str, Callable[[dict[str, Any]], Any]] = {
        "GPUs": lambda record: record["hardware"]["gpus"],
        "processor": lambda record: record["hardware"]["cpu"],
        "cores": lambda record: record["hardware"]["cores"],
        "memory": lambda record: f"{record['hardware']['memory_bytes'] / 2**30:.0f} GiB",
        "instructions": lambda record: record["hardware"]["cpu_capability"],
        "torch": lambda record: record["versions"]["torch"],
        "commit": lambda record: record["git"]["commit"][:12] + (" and changes" if record["git"]["dirty"] else ""),
    }
    for name, fact in facts.items():
        cells = [_fact(run, fact) for run in runs]
        if set(cells) != {_NONE}:
            yield [name, *cells]


def started(run: Run) -> str:
    """Date and minute."""
    return text_of(run.record.get("started"))[:16].replace("T", " ")


def text_of(value: Any) -> str:
    """A value of JSON as a person writes it."""
    if value is None or value == []:
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(text_of, value)) if isinstance(value, list) else str(value)


def _per_run(run: Run, text: Callable[[float, int], str]) -> str:
    """Of the run's seconds and processes; a dash where they are not known."""
    seconds = run.record.get("seconds")
    return _NONE if seconds is None else text(float(seconds), int(run.record.get("world_size", 1)))


def _fact(run: Run, fact: Callable[[dict[str, Any]], Any]) -> str:
    try:
        return text_of(fact(run.record))
    except (KeyError, TypeError):  # a record of another version, or none
        return _NONE
