"""Join the quickstart's evaluations of retriever and reader into one metrics.json and print them as a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_retrieval.config import run_program
from megatron_retrieval.reports.tables import percent, text_table
from megatron_retrieval.utils.files import read_json, write_json

MEASURES = ("recall@1", "recall@5", "recall@20")
READER_MEASURES = ("exact_match", "f1")


@dataclass(kw_only=True, frozen=True)
class QuickstartReportConfig:
    """Put the quickstart's evaluations side by side: random weights, ICT, end to end, fine-tuned with a reader."""

    untrained: Path
    """Output folder of a run that left the encoder as it was, with recall measured during training."""
    ict: Path
    """Output folder of the run with the Inverse Cloze Task, likewise."""
    end_to_end: Path
    """Output folder of the run that trained the encoder of `ict` and the reader together, likewise."""
    finetuned: Path
    """Output folder of the evaluation after fine-tuning on questions."""
    reader: Path
    """Output folder of the evaluation of the reader, over the passages that the fine-tuned retriever found."""
    started: int
    """When the quickstart began, in seconds since 1970."""
    output: Path
    """JSON file to write."""


def main(config: QuickstartReportConfig) -> None:
    sources = {
        "untrained": (config.untrained, "valid_"),
        "ict": (config.ict, "valid_"),
        "end_to_end": (config.end_to_end, "valid_"),
        "finetuned": (config.finetuned, ""),
    }
    evaluations = {name: read_json(folder / "metrics.json") for name, (folder, _) in sources.items()}
    metrics = {
        f"{name}/{figure}": evaluations[name][prefix + figure]
        for name, (_, prefix) in sources.items()
        for figure in _with_intervals(MEASURES)
    }
    figures = _with_intervals(READER_MEASURES)
    metrics |= {f"end_to_end/{figure}": evaluations["end_to_end"][f"valid_{figure}"] for figure in figures}
    answers = read_json(config.reader / "metrics.json")
    metrics |= {f"reader/{figure}": answers[figure] for figure in figures}
    counts = {name: evaluations["finetuned"][name] for name in ("num_questions", "num_passages")}
    seconds = round(time.time()) - config.started
    write_json(config.output, {**metrics, **counts, "seconds": seconds})
    rows = [[measure, *(percent(metrics[f"{name}/{measure}"]) for name in sources)] for measure in MEASURES]
    answering = ("end_to_end", "reader")
    rows += [[m, "", "", *(percent(metrics[f"{name}/{m}"]) for name in answering)] for m in READER_MEASURES]
    sys.stdout.write(text_table(["held-out questions, %", *sources], rows) + f"\n\n{seconds} s; {config.output}\n")


def _with_intervals(measures: Sequence[str]) -> list[str]:
    return [figure for measure in measures for figure in (measure, f"{measure}_ci95")]


if __name__ == "__main__":
    run_program(QuickstartReportConfig, main)
