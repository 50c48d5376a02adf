"""Join the quickstart's three evaluations into one metrics.json and print them as a table."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_retrieval.config import run_program
from megatron_retrieval.reports.tables import percent, text_table
from megatron_retrieval.utils.files import read_json, write_json

MEASURES = ("recall@1", "recall@5", "recall@20")


@dataclass(kw_only=True, frozen=True)
class QuickstartReportConfig:
    """Put the quickstart's evaluations side by side: of random weights, of ICT without labels, and fine-tuned."""

    untrained: Path
    """Output folder of the evaluation before training."""
    ict: Path
    """Output folder of the evaluation after the Inverse Cloze Task."""
    finetuned: Path
    """Output folder of the evaluation after fine-tuning on questions."""
    started: int
    """When the quickstart began, in seconds since 1970."""
    output: Path
    """JSON file to write."""


def main(config: QuickstartReportConfig) -> None:
    folders = {"untrained": config.untrained, "ict": config.ict, "finetuned": config.finetuned}
    evaluations = {name: read_json(folder / "metrics.json") for name, folder in folders.items()}
    figures = [figure for measure in MEASURES for figure in (measure, f"{measure}_ci95")]
    metrics = {f"{name}/{figure}": evaluations[name][figure] for name in folders for figure in figures}
    counts = {name: evaluations["finetuned"][name] for name in ("num_questions", "num_passages")}
    seconds = round(time.time()) - config.started
    write_json(config.output, {**metrics, **counts, "seconds": seconds})
    rows = [[measure, *(percent(metrics[f"{name}/{measure}"]) for name in folders)] for measure in MEASURES]
    sys.stdout.write(text_table(["held-out questions, %", *folders], rows) + f"\n\n{seconds} s; {config.output}\n")


if __name__ == "__main__":
    run_program(QuickstartReportConfig, main)
