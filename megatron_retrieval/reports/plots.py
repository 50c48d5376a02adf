"""Plots as SVG within a page: they take their colours from its style, and so follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.reports.run_files import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: colours of runs in light and in dark (after Okabe and Ito, which the colour-blind tell apart)
_LIGHT = ("#0067a5", "#c8500a", "#00795c", "#9a4d80", "#6b6b00", "#4a4a4a")
_DARK = ("#6cb6ea", "#f0935a", "#4fc9a4", "#dd9cc6", "#d6cf55", "#b8b8b8")
#: stand for colours of the page until the plot is written
_INK, _LINE = "#010203", "#040506"
_DASHES = ("-", "--", ":", "-.")
#: points of a curve that are drawn; of longer ones, means of neighbours
_MOST_POINTS = 400
#: with so few points each is marked
_FEW_POINTS = 15
#: inches; on the page, which scales plots, an inch is about as wide in each
_WIDTH, _BROAD, _HEIGHT = 3.7, 6.5, 2.1
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "megatron-retrieval",
    "font.size": 8,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
}

#: rules of the page that shows plots
STYLE = (
    ":root { "
    + " ".join(f"--run{n}: {color};" for n, color in enumerate(_LIGHT))
    + " }\n@media (prefers-color-scheme: dark) { :root { "
    + " ".join(f"--run{n}: {color};" for n, color in enumerate(_DARK))
    + """ } }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: var(--sans); }
"""
)


def color_of(run: int) -> str:
    """The colour of a run, as CSS."""
    return f"var(--run{run % len(_LIGHT)})"


def curves_svg(curves: Sequence[tuple[int, Curve]], about: str) -> str:
    """One metric of several runs over iterations.

    Args:
        curves: (number of the run, curve).
        about: what it shows, for those who hear it.
    """
    axes = _axes()
    for run, curve in curves:
        x, y = _thinned(curve)
        marker: dict[str, Any] = {"marker": "o", "markersize": 3} if len(x) <= _FEW_POINTS else {}
        axes.plot(x, y, color=_color(run), linestyle=_dash(run), **marker)
    axes.margins(x=0.02)
    axes.set_xlabel("iteration", loc="right")
    return _svg(axes, about)


def depths_svg(runs: Sequence[tuple[int, dict[int, tuple[float, float, float]]]], about: str) -> str:
    """A rate at several depths, in percent, with intervals.

    Args:
        runs: (number of the run, by depth (mean, low, high)).
    """
    axes = _axes()
    depths = sorted({depth for _, found in runs for depth in found})
    for place, (run, found) in enumerate(runs):
        shift = 0.12 * (place - (len(runs) - 1) / 2)
        own = [depth for depth in depths if depth in found]
        mean, low, high = (100 * np.array([found[depth][n] for depth in own]) for n in range(3))
        x = np.array([depths.index(depth) for depth in own]) + shift
        axes.errorbar(x, mean, [mean - low, high - mean], color=_color(run), fmt="o", linestyle=_dash(run),
                      markersize=3.5, linewidth=1.1, elinewidth=1.3, capsize=2.5)  # fmt: skip
    axes.set_xticks(range(len(depths)), [f"@{depth}" for depth in depths])
    axes.set_ylabel("%", rotation=0, loc="top")
    return _svg(axes, about)


def differences_svg(rows: Sequence[tuple[str, float, float, float]], run: int, about: str) -> str:
    """Differences in percent with intervals, one a line, and the line of no difference; a broad plot.

    Args:
        rows: (name, difference, low, high).
        run: number of the run that is compared.
    """
    axes = _axes(_BROAD, 0.55 + 0.22 * len(rows))
    places = np.arange(len(rows))[::-1]
    mean, low, high = (100 * np.array([row[n] for row in rows]) for n in (1, 2, 3))
    axes.axvline(0, color=_INK, linewidth=0.9)
    axes.errorbar(mean, places, xerr=[mean - low, high - mean], color=_color(run), fmt="o", markersize=4, capsize=2.5)
    axes.set_yticks(places, [row[0] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("difference in percentage points", loc="right")
    return _svg(axes, about)


def _axes(width: float = _WIDTH, height: float = _HEIGHT) -> Axes:
    try:
        import matplotlib  # with its fonts half a second
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'megatron-retrieval[report]'.") from error
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure.add_subplot()


def _svg(axes: Axes, about: str) -> str:
    import matplotlib

    written = io.StringIO()
    figure: Any = axes.figure
    with matplotlib.rc_context(_SETTINGS):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{about}">', svg, count=1)
    return _in_colors_of_page(_with_own_ids(svg, about))


def _with_own_ids(svg: str, about: str) -> str:
    """Ids that no other plot of the page has; those that nothing refers to go."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    prefix = f"{abs(hash(about)):x}"
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)


def _in_colors_of_page(svg: str) -> str:
    names: Iterable[tuple[str, str]] = [(_INK, "var(--soft)"), (_LINE, "var(--line)")]
    for color, value in [*names, *((color, color_of(number)) for number, color in enumerate(_LIGHT))]:
        svg = svg.replace(color, value)
    return svg


def _color(run: int) -> str:
    return _LIGHT[run % len(_LIGHT)]


def _dash(run: int) -> str:
    """Runs of one colour differ in their lines."""
    return _DASHES[run // len(_LIGHT) % len(_DASHES)]


def _thinned(curve: Curve) -> tuple[Any, Any]:
    """Iterations and values, of long curves as means of neighbours."""
    parts = min(len(curve.values), _MOST_POINTS)
    x, y = (np.array_split(column, parts) for column in (curve.iterations, curve.values))
    return [part[-1] for part in x], [part.mean() for part in y]
