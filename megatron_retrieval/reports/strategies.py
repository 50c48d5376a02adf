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
#: what the seconds of a run went into; rest: evaluation, checkpoints, the start
PARTS = ("searching", "encoding", "reading", "rest")


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
        own, more = _run_hours(chosen)
        parts = {name: parts[name] + own[name] for name in PARTS}
        saved += more
        grid += sum(sum(_run_hours(other)[0].values()) for other in others)
    return Hours(parts, grid, sum(parts.values()) + saved)


def _run_hours(run: Path) -> tuple[dict[str, float], float]:
    """Hours of one run by part, and those that remembering what was read has saved."""
    record = read_json(run / RUN_RECORD)
    lines = [json.loads(line) for line in read_lines(run / "metrics.jsonl")]
    steps = [line for line in lines if "seconds_reading" in line]
    # logged steps stand for those between them
    share = record["world_size"] * (record["iterations"] / len(steps) if steps else 0) / 3600
    parts = {name: share * sum(step[f"seconds_{name}"] for step in steps) for name in PARTS[:-1]}
    seconds = record["seconds"] + record.get("earlier_seconds", 0.0)
    parts["rest"] = max(0.0, seconds * record["world_size"] / 3600 - sum(parts.values()))
    num_asked, num_read = (sum(step.get(f"num_passages_{name}", 0) for step in steps) for name in ("asked", "read"))
    return parts, parts["reading"] * (num_asked / num_read - 1) if num_read else 0.0


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
        "processes, without embedding and evaluation. grid: learning rates not chosen. without memory: hours, "
        "had a frozen reader read every passage again.",
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
    order = [name for name in ("embedder", "generator", "independent", "joint-token", "two-phase") if name in by_name]
    if len(order) > 1:
        hours = [by_name[name].hours.forgetful for name in order]
        verdict = "shown" if all(a < b for a, b in pairwise(hours)) else "contradicted"
        figures = ", ".join(f"{value:.2f}" for value in hours)
        found.append(("hours, without memory: " + " < ".join(order), figures, verdict))
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
