"""Join the quickstart's evaluations of retriever and reader into one metrics.json and print them as a table."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_retrieval.config.program import run_program
from megatron_retrieval.evaluation.intervals import mean_interval
from megatron_retrieval.reports.tables import percent, text_table
from megatron_retrieval.utils.files import read_json, write_json

MEASURES = ("recall@1", "recall@5", "recall@20")
READER_MEASURES = ("exact_match", "f1")


@dataclass(kw_only=True, frozen=True)
class QuickstartReportConfig:
    """Put the quickstart's evaluations side by side: random weights, ICT, end to end, fine-tuned with a reader."""

    ict: Path
    """Output folder of the run with the Inverse Cloze Task, with recall before the first step and in the end."""
    end_to_end: Path
    """Output folder of the run that trained the encoder of `ict` and the reader together."""
    finetuned: Path
    """Output folder of the evaluation after fine-tuning on questions."""
    reader: Path
    """Output folder of the evaluation of the reader, over the passages that the fine-tuned retriever found."""
    mss: Path | None = None
    """Output folder of the run with masked salient spans, which started from `ict`; default: there was none."""
    started: int
    """When the quickstart began, in seconds since 1970."""
    output: Path
    """JSON file to write."""


def main(config: QuickstartReportConfig) -> None:
    sources = {
        "ict": (config.ict, "valid_"),
        **({"mss": (config.mss, "valid_")} if config.mss is not None else {}),
        "end_to_end": (config.end_to_end, "valid_"),
        "finetuned": (config.finetuned, ""),
    }
    evaluations = {name: read_json(folder / "metrics.json") for name, (folder, _) in sources.items()}
    num_questions = evaluations["finetuned"]["num_questions"]
    metrics = _untrained(config.ict / "metrics.jsonl", num_questions)
    metrics |= {
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
    columns = ("untrained", *sources)
    rows = [[measure, *(percent(metrics[f"{name}/{measure}"]) for name in columns)] for measure in MEASURES]
    answering = ("end_to_end", "reader")
    rows += [
        [m, *[""] * (len(columns) - 2), *(percent(metrics[f"{name}/{m}"]) for name in answering)]
        for m in READER_MEASURES
    ]
    sys.stdout.write(text_table(["held-out questions, %", *columns], rows) + f"\n\n{seconds} s; {config.output}\n")


def _untrained(log: Path, num_questions: int) -> dict[str, Any]:
    """Recall before the first step, the first line of the log; its interval follows from the number of hits."""
    with log.open(encoding="utf-8") as file:
        first = json.loads(file.readline())
    metrics: dict[str, Any] = {}
    for measure in MEASURES:
        recall = float(first[f"valid_{measure}"])
        interval = mean_interval((np.arange(num_questions) < round(recall * num_questions)).astype(np.float64))
        metrics |= {f"untrained/{measure}": recall, f"untrained/{measure}_ci95": [interval.low, interval.high]}
    return metrics


def _with_intervals(measures: Sequence[str]) -> list[str]:
    return [figure for measure in measures for figure in (measure, f"{measure}_ci95")]


if __name__ == "__main__":
    run_program(QuickstartReportConfig, main)
