"""Strategies of training a retriever and a reader, side by side: answers, recall and hours (Lawton et al. 2025, "A
comparison of independent and joint fine-tuning strategies for retrieval-augmented generation")."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.errors import MismatchError
from megatron_retrieval.evaluation.intervals import Interval, mean_interval, paired_difference
from megatron_retrieval.evaluation.predictions import PREDICTIONS
from megatron_retrieval.evaluation.rank_metrics import hits_at
from megatron_retrieval.evaluation.retrieval_results import RANKS, read_ranks
from megatron_retrieval.reports.figures import new_figure
from megatron_retrieval.training.lr_grid import GRID
from megatron_retrieval.training.run_record import RUN_RECORD
from megatron_retrieval.utils.files import read_json, read_lines

Values = NDArray[np.float64]
DEPTH = 5
FIGURES = {"exact_match": "EM", "f1": "F1", "recall": f"recall@{DEPTH}"}
#: what the seconds of a run went into; of training without a reader, encoding is all of its steps. rest: evaluation in
#: training, checkpoints, the start
PARTS = ("searching", "encoding", "reading", "rest")


#: from the strategy that takes the fewest hours to that with the most; the joint ones stand together
_BY_HOURS = (("embedder",), ("generator",), ("independent",), ("joint-sequence", "joint-token"), ("two-phase",))


@dataclass(frozen=True)
class Hours:
    """Hours of processes: of a run on two of them, twice its duration.

    Attributes:
        parts: by `PARTS`.
        grid: runs with learning rates that were not chosen.
        forgetful: all parts, had a frozen reader read every passage again each time.
    """

    parts: Mapping[str, float]
    grid: float
    forgetful: float

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Strategy:
    """A strategy and what came of it.

    Attributes:
        values: one number for each question, by the names in `FIGURES`.
        hours: of all training that it needs.
    """

    name: str
    values: Mapping[str, Values]
    hours: Hours

    def interval(self, figure: str) -> Interval:
        """A figure with its 95 % interval."""
        return mean_interval(self.values[figure])

    def difference(self, other: Strategy, figure: str) -> Interval:
        """How much more than another, over the same questions."""
        return paired_difference(other.values[figure], self.values[figure])


def read_strategies(folders: Sequence[Path]) -> list[Strategy]:
    """One for each folder NAME, which holds `answers` (an evaluation of a reader), `recall` (of a retriever), and
    `training.json`, a list of the output folders of the runs that the strategy needs.

    Raises:
        DataError: something is missing.
        MismatchError: they are of different questions.
    """
    asked: tuple[list[str], list[str]] | None = None
    strategies = []
    for folder in folders:
        lines = [json.loads(line) for line in read_lines(folder / "answers" / PREDICTIONS)]
        questions, ranks, _ = read_ranks(folder / "recall" / RANKS)
        own = ([line["question"] for line in lines], questions)
        if asked is not None and own != asked:
            raise MismatchError(f"{folders[0]} and {folder} answer or search different questions; evaluate them alike.")
        asked = own
        values = {name: np.array([line[name] for line in lines], np.float64) for name in ("exact_match", "f1")}
        values["recall"] = hits_at(ranks.answer, DEPTH).astype(np.float64)
        runs = [Path(run) for run in read_json(folder / "training.json")]
        strategies.append(Strategy(folder.name, values, _hours(runs)))
    return strategies


def _hours(runs: Sequence[Path]) -> Hours:
    parts, grid, saved = dict.fromkeys(PARTS, 0.0), 0.0, 0.0
    for run in runs:
        chosen, others = run, list[Path]()
        if (run / GRID).exists():
            found = read_json(run / GRID)
            chosen = Path(found["best"]["output_dir"])
            others = [Path(row["output_dir"]) for row in found["runs"] if row["lr"] != found["best"]["lr"]]
        own, rest = _run_hours(chosen), [_run_hours(other) for other in others]
        parts = {name: parts[name] + own.parts[name] for name in PARTS}
        grid += sum(sum(other.parts.values()) for other in rest)
        saved += _saved(own, [own, *rest])
    return Hours(parts, grid, sum(parts.values()) + saved)


@dataclass(frozen=True)
class _RunHours:
    """Hours of processes of one run, by part, and passages that were asked of a reader that remembers, and read."""

    parts: Mapping[str, float]
    num_asked: float
    num_read: float


def _run_hours(run: Path) -> _RunHours:
    record = read_json(run / RUN_RECORD)
    world_size, iterations = record["world_size"], record["iterations"]
    lines = [json.loads(line) for line in read_lines(run / "metrics.jsonl")]
    steps = [line for line in lines if "seconds_reading" in line]
    # logged steps stand for those between them
    share = iterations / len(steps) if steps else 0
    parts = {name: share * sum(step[f"seconds_{name}"] for step in steps) for name in PARTS[:-1]}
    if not steps and (rates := [line["examples_per_second"] for line in lines if line.get("examples_per_second")]):
        seconds_of_step = [record["config"]["global-batch-size"] / rate for rate in rates]
        parts["encoding"] = iterations * sum(seconds_of_step) / len(rates)
    seconds = record["seconds"] + record.get("earlier_seconds", 0.0)
    parts["rest"] = max(0.0, seconds - sum(parts.values()))
    counts = (share * sum(step.get(f"num_passages_{name}", 0) for step in steps) for name in ("asked", "read"))
    return _RunHours({name: world_size * value / 3600 for name, value in parts.items()}, *counts)


def _saved(run: _RunHours, grid: Sequence[_RunHours]) -> float:
    """Hours that remembering has saved a run. What it has not read itself another one of its grid has, so that a
    passage takes what it took in all of them."""
    num_read = sum(one.num_read for one in grid)
    if not num_read:
        return 0.0
    return run.num_asked * sum(one.parts["reading"] for one in grid) / num_read - run.parts["reading"]


def markdown(strategies: Sequence[Strategy]) -> str:
    """The table, differences from its first row with paired 95 % intervals, and what the paper's claims come to."""
    first = strategies[0]
    header = ["strategy", *FIGURES.values(), *(f"{name} - {first.name}" for name in FIGURES.values())]
    header += ["hours", *PARTS, "grid", "without memory"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for strategy in strategies:
        cells = [strategy.name, *(_plain(strategy.interval(figure)) for figure in FIGURES)]
        cells += ["" if strategy is first else _signed(strategy.difference(first, figure)) for figure in FIGURES]
        hours = strategy.hours
        cells += [f"{value:.2f}" for value in (hours.total, *hours.parts.values(), hours.grid, hours.forgetful)]
        lines.append("| " + " | ".join(cells) + " |")
    num_asked, num_searched = len(first.values["f1"]), len(first.values["recall"])
    notes = [
        f"Percent with 95 % intervals: EM and F1 of {num_asked:,} questions, recall of {num_searched:,}. Hours are of "
        "processes in training, without embedding the passages and without this evaluation. encoding: of a retriever "
        "trained from labels, all steps. rest: evaluation in training, checkpoints, the start. grid: learning rates "
        "not chosen; of a frozen reader they share what it has read. without memory: hours, had it read every passage "
        "again.",
    ]
    found = claims({strategy.name: strategy for strategy in strategies})
    rows = ["", "| claim | found | |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in found)] if found else []
    return "\n".join([*lines, "", *notes, *rows, ""])


def claims(by_name: Mapping[str, Strategy]) -> list[tuple[str, str, str]]:
    """The paper's claims about the strategies that are there: what is claimed, what was found, and whether that is
    shown, not shown or contradicted. Equal: the interval of the difference lies within 6 points."""
    found: list[tuple[str, str, str]] = []
    above = [("generator", "exact_match")]
    above += [(name, "recall") for name in ("embedder", "two-phase", "joint-sequence", "joint-token")]
    for name, figure in above:
        if {"none", name} <= by_name.keys():
            interval = by_name[name].difference(by_name["none"], figure)
            verdict = "shown" if interval.low > 0 else "contradicted" if interval.high < 0 else "not shown"
            found.append((f"{name} has more {FIGURES[figure]} than none", _signed(interval), verdict))
    whole = [name for name in ("independent", "two-phase", "joint-sequence", "joint-token") if name in by_name]
    for number, one in enumerate(whole):
        for other in whole[number + 1 :]:
            interval = by_name[other].difference(by_name[one], "exact_match")
            low, high = 100 * interval.low, 100 * interval.high
            verdict = "shown" if low > -6 and high < 6 else "contradicted" if low > 6 or high < -6 else "not shown"
            found.append((f"{one} and {other} have equal EM", _signed(interval), verdict))
    order = [[name for name in names if name in by_name] for names in _BY_HOURS]
    order = [names for names in order if names]
    if len(order) > 1:
        hours = [[by_name[name].hours.forgetful for name in names] for names in order]
        verdict = "shown" if all(max(less) < min(more) for less, more in pairwise(hours)) else "contradicted"
        claim = "hours, without memory: " + " < ".join(", ".join(names) for names in order)
        found.append((claim, ", ".join(f"{value:.2f}" for values in hours for value in values), verdict))
    return found


def as_json(strategies: Sequence[Strategy]) -> list[dict[str, Any]]:
    """The same figures, for programs."""
    rows = []
    for strategy in strategies:
        intervals = {figure: strategy.interval(figure) for figure in FIGURES}
        differences = {figure: strategy.difference(strategies[0], figure) for figure in FIGURES}
        hours = {**strategy.hours.parts, "total": strategy.hours.total, "grid": strategy.hours.grid}
        rows.append(
            {
                "strategy": strategy.name,
                **{name: vars(interval) for name, interval in intervals.items()},
                **{f"{name}_difference": vars(interval) for name, interval in differences.items()},
                "hours": {**hours, "without_memory": strategy.hours.forgetful},
            }
        )
    return rows


def _plain(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _signed(interval: Interval) -> str:
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def picture(strategies: Sequence[Strategy], path: Path) -> None:
    """Bars of all figures with their intervals, and of hours by part.

    Raises:
        DataError: matplotlib is not installed.
    """
    figure = new_figure(path, 12, 1.5 + 0.4 * len(strategies))
    panels, names = figure.subplots(1, len(FIGURES) + 1, sharey=True), [strategy.name for strategy in strategies]
    for panel, (name, title) in zip(panels, FIGURES.items(), strict=False):
        intervals = [strategy.interval(name) for strategy in strategies]
        means = np.array([100 * interval.mean for interval in intervals])
        ends = 100 * np.array([[interval.low for interval in intervals], [interval.high for interval in intervals]])
        panel.barh(names, means, xerr=np.abs(ends - means), color="#68c")
        panel.set_title(f"{title} (%)")
    left = np.zeros(len(strategies))
    for part in PARTS:
        hours = np.array([strategy.hours.parts[part] for strategy in strategies])
        panels[-1].barh(names, hours, left=left, label=part)
        left += hours
    panels[-1].set_title("hours")
    panels[-1].legend(fontsize="small")
    panels[0].invert_yaxis()
    figure.savefig(path)
