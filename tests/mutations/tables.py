"""The tables of mutations, and what is reported of them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT, PACKAGE = Path(__file__).parents[2], "megatron_retrieval"
#: share that must be noticed: of all, and in these areas, where nothing else would tell of a mistake
ALL, WHOLE_AREAS = 0.95, ("training", "refresh", "index", "retrieval")
NOTICED, SURVIVED, TIMED_OUT = "noticed", "survived", "timed out"
BROKEN, ALWAYS_FAILS = "tests did not run", "the test fails without the change"


@dataclass(frozen=True)
class Mutation:
    """A change that a test should notice.

    Attributes:
        area: the table's name.
        file: of the package.
        what: the code does wrong then.
        old, new: text within one line, before and after.
        tests: words for pytest, files seen from tests/: the smallest set that notices.
    """

    area: str
    file: str
    what: str
    old: str
    new: str
    tests: str

    def words(self) -> list[str]:
        """The tests, as pytest takes them from the root."""
        return [f"tests/{word}" if ".py" in word else word for word in shlex.split(self.tests)]

    def apply(self, text: str) -> str:
        """The file's text with the change.

        Raises:
            ValueError: the old text does not stand there exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.area}.yaml: {self.old!r} stands {count} times in {self.file}, not once")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Outcome:
    """What became of a mutation; `by`: the test that noticed."""

    mutation: Mutation
    result: str
    seconds: float
    by: str = ""


def read_tables(areas: Sequence[str] = ()) -> list[Mutation]:
    """The mutations of the tables of these names, or of all."""
    names = areas or sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))
    return [
        Mutation(area, file, **entry)
        for area in names
        for file, entries in yaml.safe_load(Path(__file__).with_name(f"{area}.yaml").read_text()).items()
        for entry in entries
    ]


def report(outcomes: Sequence[Outcome]) -> tuple[str, bool]:
    """A table by area with what was not noticed below it, and whether enough was."""
    lines = ["| area | noticed | not noticed | rate |", "|---|---|---|---|"]
    groups = {area: [o for o in outcomes if o.mutation.area == area] for area in {o.mutation.area for o in outcomes}}
    is_enough = True
    for area, group in [*sorted(groups.items()), ("all", list(outcomes))]:
        rate = sum(o.result == NOTICED for o in group) / len(group)
        bar = 1.0 if area in WHOLE_AREAS else ALL if area == "all" else 0.0
        is_enough &= rate >= bar
        num_noticed, below = round(rate * len(group)), "" if rate >= bar else f", below {bar:.0%}"
        lines.append(f"| {area} | {num_noticed} | {len(group) - num_noticed} | {rate:.0%}{below} |")
    missed = [o for o in outcomes if o.result != NOTICED]
    lines += [f"{o.result}: {o.mutation.file}, {o.mutation.what} ({o.mutation.tests})" for o in missed]
    return "\n".join(lines), is_enough
