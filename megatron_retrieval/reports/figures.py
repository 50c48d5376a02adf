"""Pictures as files, for papers and READMEs; those of a page are `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_retrieval.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(path: Path, width: float, height: float) -> Figure:
    """An empty one, in inches, to be saved as `path`.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = "Install megatron-retrieval[report], or leave --picture out."
        raise DataError(path, "drawing needs matplotlib", hint=hint) from error
    return Figure(figsize=(width, height), layout="constrained")


def sweep_picture(rows: Sequence[dict[str, Any]], metric: str, names: Sequence[str], path: Path) -> None:
    """What means of two checkpoints find, by the share of the last, a line for each data set.

    Args:
        rows: of sweep.json.

    Raises:
        DataError: matplotlib is not installed.
    """
    figure = new_figure(path, 6, 3.5)
    axes, shares = figure.subplots(), [row["share"] for row in rows]
    for number, name in enumerate(names):
        found = [row["data_sets"][number][metric] for row in rows]
        values = np.array([one["difference"] for one in found])
        ends = np.array([one["difference_ci95"] for one in found]).T
        about = f"{Path(name).name} ({100 * found[0]['candidate']:.1f} %)"
        axes.errorbar(
            shares,
            100 * values,
            100 * np.abs(ends - values),
            marker="o",
            capsize=3,
            label=about,
        )
    axes.axhline(0, color="#888", linewidth=0.8)
    axes.set_xlabel("share of the last checkpoint")
    axes.set_ylabel(f"{metric}, points above share {shares[0]:g}")
    axes.legend(fontsize="small")
    figure.savefig(path)
