"""The report of one run or of several: one file that needs no network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from megatron_retrieval.errors import MismatchError
from megatron_retrieval.evaluation.paired_runs import ANSWER, compare_runs, differences
from megatron_retrieval.reports import plots
from megatron_retrieval.reports.html import html_table, page_end, page_start
from megatron_retrieval.reports.run_facts import cost_rows, machine_rows, settings_that_differ, started, text_of
from megatron_retrieval.reports.run_files import Run
from megatron_retrieval.reports.tables import percent
from megatron_retrieval.reports.won_and_lost import example_articles, won_and_lost
from megatron_retrieval.utils.files import atomic_file

#: headings and the metrics that stand under them, in this order; what is left comes last
GROUPS = (
    ("Loss", r"(valid_)?loss"),
    ("Recall and answers", r"(valid_)?(gold_)?(recall@\d+|exact_match|f1|accuracy(@\d+)?)"),
    ("Index", r"index_(staleness|overlap).*"),
    ("Throughput", r"examples_per_second|seconds_.*"),
    ("Optimizer", r"lr|grad_norm|loss_scale|skipped_steps"),
)
_RECALL = re.compile(r"(?P<prefix>.*recall)@(?P<depth>\d+)")
#: settings that fit on the page at once
_OPEN_ROWS = 30

_STYLE = (
    plots.STYLE
    + """
body { max-width: 66rem; }
h1 { margin-bottom: .35rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1.25rem 1.5rem; }
figure { margin: 0; padding: .8rem .9rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .75rem; }
figcaption { font-size: .88rem; font-weight: 600; margin-bottom: .35rem; }
.broad { max-width: 32rem; }
.wide { margin-top: 1rem; } td:first-child { min-width: 7rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; margin: 0 0 1rem;
  font-size: .92rem; }
.legend i { display: inline-block; width: 1.1rem; height: .25rem; border-radius: 1rem; vertical-align: middle;
  margin-right: .45rem; }
details { margin: .6rem 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .82rem; margin: 0; }
article { padding: .7rem 0; border-top: 1px solid var(--line); }
article h3 { margin: 0 0 .3rem; } article p { margin: 0; }
article q { quotes: none; font-family: var(--serif); font-size: .94rem; }
.better { color: var(--good); } .worse { color: var(--bad); }
td.number.better, td.number.worse { font-weight: 600; }
"""
)


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    Attributes:
        num_examples: questions won, and lost, for each comparison.
        price_per_hour: of a device (a GPU, or a process without one); None: no price is named.
    """

    num_examples: int = 8
    price_per_hour: float | None = None


def write_run_page(path: Path, runs: Sequence[Run], options: ReportOptions) -> None:
    """Write the page; the first run is the one that the others are compared with.

    Raises:
        ConfigError: matplotlib is not installed.
        DataError: a file of a run is malformed.
    """
    parts = [
        _legend(runs),
        *_results(runs),
        *_comparisons(runs, options),
        *_curves(runs),
        *_settings(runs),
        *_machines(runs, options),
    ]
    title = f"Report of {runs[0].name}" if len(runs) == 1 else f"Report of {len(runs)} runs"
    with atomic_file(path) as file:
        file.write(page_start(title, _STYLE))
        file.writelines(parts)
        file.write(page_end())


def _legend(runs: Sequence[Run]) -> str:
    """Name, colour and folder of every run."""
    items = "".join(
        f'<li><i style="background: {plots.color_of(n)}"></i>{escape(run.name)} '
        f"<small>{escape(started(run))}</small></li>"
        for n, run in enumerate(runs)
    )
    return f'<ul class="legend">{items}</ul>\n'


def _results(runs: Sequence[Run]) -> Iterator[str]:
    """Every rate with its interval, and recall by depth as a plot."""
    rates = _rates(runs)
    names = list(dict.fromkeys(name for own in rates for name in own))
    if not names:
        return
    yield "<h2>Results</h2>\n"
    prefixes = list(dict.fromkeys(match["prefix"] for name in names if (match := _RECALL.fullmatch(name))))
    figures = []
    for prefix in prefixes:
        found = [
            (n, {int(name.partition("@")[2]): own[name] for name in own if name.startswith(f"{prefix}@")})
            for n, own in enumerate(rates)
        ]
        shown = [(n, depths) for n, depths in found if depths]
        about = f"{_words(prefix)} at each depth"
        figures.append(_figure(_words(prefix), plots.depths_svg(shown, about)))
    yield _grid(figures)
    cells = ([_words(name), *(_with_interval(own.get(name)) for own in rates)] for name in names)
    yield html_table(["", *(run.name for run in runs)], cells, caption="In percent, with 95 % intervals")


def _rates(runs: Sequence[Run]) -> list[dict[str, tuple[float, float, float]]]:
    """Those of each run; recall by answers is called so where another has recall by judgements."""
    if not any(run.is_judged for run in runs):
        return [run.rates() for run in runs]
    return [
        {
            f"{ANSWER}{name}" if name.startswith("recall@") and not run.is_judged else name: rate
            for name, rate in run.rates().items()
        }
        for run in runs
    ]


def _comparisons(runs: Sequence[Run], options: ReportOptions) -> Iterator[str]:
    """Each run beside the first that tells of its questions."""
    told = [run for run in runs if run.has_questions]
    if len(told) < 2:
        return
    yield f"<h2>Compared with {escape(told[0].name)}</h2>\n"
    for number, run in enumerate(runs):
        if run is told[0] or run not in told:
            continue
        yield f"<h3>{escape(run.name)}</h3>\n"
        try:
            comparison = compare_runs(told[0].folder, run.folder, _depths(told[0], run))
        except MismatchError:
            yield "<p>These are evaluations of different questions, so that nothing can be compared in pairs.</p>\n"
            continue
        rows = list(differences(comparison))
        if not rows:
            yield "<p>They have no metric in common.</p>\n"
            continue
        yield _differences(rows, comparison["num_questions"], number, f"{run.name} beside {told[0].name}")
        yield from example_articles(*won_and_lost(told[0].folder, run.folder, options.num_examples))


def _differences(rows: Sequence[tuple[str, dict[str, Any]]], num_questions: int, run: int, about: str) -> str:
    bars = [(_words(name), one["difference"], *one["difference_ci95"]) for name, one in rows]
    cells = []
    for name, one in rows:
        low, high = (f"{100 * end:+.1f}" for end in one["difference_ci95"])
        change = f"{100 * one['difference']:+.1f}"
        cells.append([_words(name), percent(one["baseline"]), percent(one["candidate"]), change, f"{low} to {high}"])
    header, caption = ["", "before", "after", "difference", "95 % interval"], f"{num_questions:,} questions, in percent"
    figure = _figure(
        "Paired differences with 95 % intervals", plots.differences_svg(bars, run, f"differences of {about}")
    )
    return f'<div class="broad">{figure}</div>\n{html_table(header, cells, caption=caption)}'


def _curves(runs: Sequence[Run]) -> Iterator[str]:
    """A plot for every metric that changes on the way."""
    left = list(dict.fromkeys(name for run in runs for name in run.curves))
    left = [
        name
        for name in left
        if len({value for run in runs if name in run.curves for value in run.curves[name].values}) > 1
    ]
    for title, pattern in (*GROUPS, ("Other measurements", ".*")):
        names = [name for name in left if re.fullmatch(pattern, name)]
        left = [name for name in left if name not in names]
        if names:
            shown = ([(n, run.curves[name]) for n, run in enumerate(runs) if name in run.curves] for name in names)
            figures = [
                _figure(_words(name), plots.curves_svg(own, _told(name, own)))
                for name, own in zip(names, shown, strict=True)
            ]
            grid = _grid(figures)
            is_main = pattern != ".*"
            yield f"<h2>{title}</h2>\n{grid}" if is_main else f"<details><summary>{title}</summary>\n{grid}</details>\n"


def _settings(runs: Sequence[Run]) -> Iterator[str]:
    names = [run.name for run in runs]
    rows = settings_that_differ([run.settings for run in runs])
    if len(runs) > 1 and rows:
        table = html_table(["setting", *names], rows, figures=False)
        summary = f"<summary>{len(rows)} settings</summary>"
        yield "<h2>Settings that differ</h2>\n"
        yield table if len(rows) <= _OPEN_ROWS else f"<details>{summary}\n{table}</details>\n"
    for run in runs:
        if run.settings:
            rows = [[name, text_of(value)] for name, value in run.settings.items()]
            table = html_table(["setting", "value"], rows, figures=False)
            yield f"<details><summary>All settings of {escape(run.name)}</summary>\n{table}</details>\n"


def _machines(runs: Sequence[Run], options: ReportOptions) -> Iterator[str]:
    if any(run.record for run in runs):
        names = [run.name for run in runs]
        yield "<h2>Time, cost and machine</h2>\n"
        yield html_table(["", *names], [*cost_rows(runs, options.price_per_hour), *machine_rows(runs)], figures=False)
        for run in runs:
            if command := run.record.get("command"):
                yield f"<h3>Command of {escape(run.name)}</h3>\n<pre>{escape(command)}</pre>\n"


def _figure(title: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>\n"


def _grid(figures: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(figures)}</div>\n' if figures else ""


def _with_interval(rate: tuple[float, float, float] | None) -> str:
    return "–" if rate is None else "{} ({} – {})".format(*map(percent, rate))


def _depths(*runs: Run) -> list[int]:
    """Depths at which all of them measured recall."""
    own = [{int(match["depth"]) for name in run.metrics if (match := _RECALL.fullmatch(name))} for run in runs]
    return sorted(set.intersection(*own))


def _words(name: str) -> str:
    """The name of a metric as people write it."""
    return name.replace("valid_", "held out: ").replace("_", " ")


def _told(name: str, curves: Sequence[tuple[int, Any]]) -> str:
    """What a plot shows, for those who hear it."""
    ends = (f"from {curve.values[0]:.4g} to {curve.values[-1]:.4g}" for _, curve in curves)
    return f"{_words(name)} over iterations: {'; '.join(ends)}"
