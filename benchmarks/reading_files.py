"""Readers of passage files at a large size: rows a second and peak memory, each in a process of its own.

Every kind holds the same generated passages. Memory is the most that the process held above what it held before.
"""

from __future__ import annotations

import csv
import gzip
import json
import multiprocessing
import sys
import time
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.reports.tables import text_table

Kind = Literal["BEIR lines", "BEIR lines, gzip", "JSON list", "psgs_w100.tsv", "CSV", "collection.tsv", "Parquet"]
MIB = 2**20
TEXT = "the blue lake is located in the north of the old country, 12 miles from the sea; 青い湖 " * 6


@dataclass(kw_only=True, frozen=True)
class ReadingBenchmarkConfig(Checked):
    """Time the readers of passage files."""

    num_passages: PositiveInt = 200_000
    """Passages of about 550 bytes in each file."""
    kinds: tuple[Kind, ...] = typing.get_args(Kind)
    """Kinds of files."""


def main(config: ReadingBenchmarkConfig) -> None:
    rows = []
    with TemporaryDirectory() as folder:
        for kind in config.kinds:
            path = Path(folder) / "corpus.csv"
            _write(kind, path, config.num_passages)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, peak = pool.apply(_read, (path, config.num_passages))
            rate = f"{config.num_passages / seconds:,.0f}"
            rows.append([kind, f"{path.stat().st_size / MIB:,.0f}", rate, f"{peak / MIB:,.0f}"])
            path.unlink()
    sys.stdout.write(text_table(["", "MiB", "rows/s", "MiB held"], rows) + "\n")


def _read(path: Path, num_passages: int) -> tuple[float, int]:
    next(read_passages(path))  # what is imported late is no memory of reading
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten (Linux)
    before = _peak_bytes()
    start = time.perf_counter()
    count = sum(1 for _ in read_passages(path))
    if count != num_passages:
        raise AssertionError(f"{count} passages read, {num_passages} written")
    return time.perf_counter() - start, _peak_bytes() - before


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _passages(number: int) -> Iterator[dict[str, str]]:
    return ({"_id": f"<d:{row}>", "title": f"Title {row}", "text": f"{row} {TEXT}"} for row in range(number))


def _write(kind: str, path: Path, number: int) -> None:
    if kind == "Parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(_passages(number))), path, row_group_size=10_000)
        return
    with gzip.open(path, "wt", compresslevel=1) if "gzip" in kind else path.open("w", newline="") as file:
        if kind.startswith("BEIR"):
            file.writelines(json.dumps(row) + "\n" for row in _passages(number))
        elif kind == "JSON list":
            file.write("[" + ",\n".join(json.dumps(row) for row in _passages(number)) + "]")
        elif kind == "collection.tsv":
            file.writelines(f"{row['_id']}\t{row['text']}\n" for row in _passages(number))
        else:
            table = csv.DictWriter(file, ["_id", "text", "title"], delimiter="," if kind == "CSV" else "\t")
            table.writeheader()
            table.writerows(_passages(number))


if __name__ == "__main__":
    run_program(ReadingBenchmarkConfig, main)
