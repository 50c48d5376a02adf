"""Rows of the source papers' tables: as published, as measured here, and the command that measures them again."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

from megatron_retrieval.errors import ConfigError, DataError, MegatronRetrievalError
from megatron_retrieval.reports.tables import percent, text_table
from megatron_retrieval.utils.files import read_json, write_json
from megatron_retrieval.utils.logging import get_logger

REGISTRY = Path("examples/registry.yaml")
VERDICTS = "reproduced.json"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a paper; scores are fractions."""

    source: str
    at: str
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a row is measured here.

    Attributes:
        expected: value, least and greatest of each figure of the file `metrics`.
        until: the result after which the command ends; empty: it runs to its end.
        at: the scale.
        hours: on two CPU cores.
    """

    command: str
    metrics: str
    expected: Mapping[str, tuple[float, float, float]]
    at: str
    hours: float
    until: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An entry of the registry; `full` is the command at the paper's scale."""

    about: str
    paper: Published | None = None
    ours: Measured | None = None
    full: str = ""


@dataclass(kw_only=True, frozen=True)
class ReproduceConfig:
    """Run a row of examples/registry.yaml again, and compare its figures with those on record."""

    name: tyro.conf.Positional[str] = ""
    """The row; without one, all rows are listed."""
    data: Path | None = None
    """Folder of the public data that the row's script names."""
    model: Path | None = None
    """Folder of the public model that the row's script names."""
    output_dir: Path | None = None
    """Folder of the run; stages that are there are not repeated."""
    registry: Path = REGISTRY
    """The rows."""


class NotReproducedError(MegatronRetrievalError):
    """A figure lies outside the interval on record."""


def read_registry(path: Path) -> dict[str, Row]:
    """The rows by name.

    Raises:
        ConfigError: no file, or a row without what a row has.
    """
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: not there; run from the root of the repository, or give --registry.") from None
    try:
        return {name: _row(fields) for name, fields in rows.items()}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: a row is malformed: {error}") from error


def _row(fields: Mapping[str, Any]) -> Row:
    paper, ours = fields.get("paper"), fields.get("ours")
    if ours:
        expected = {key: tuple(map(float, values)) for key, values in ours["expected"].items()}
        ours = Measured(**{**ours, "expected": expected})
    return Row(**{**fields, "paper": Published(**paper) if paper else None, "ours": ours})


def reproduce(config: ReproduceConfig) -> None:
    """Run a row's command and judge its figures, or list the rows.

    Raises:
        ConfigError: no such row, or a flag that its command needs is missing.
        DataError: the command failed.
        NotReproducedError: it ran, and a figure is not what it was.
    """
    rows = read_registry(config.registry)
    if not config.name:
        sys.stdout.write("\n".join(line for name, row in rows.items() for line in _listed(name, row)) + "\n")
        return
    if config.name not in rows:
        raise ConfigError(f"{config.name!r} is no row of {config.registry}; without a name all are listed.")
    row = rows[config.name]
    if row.ours is None:
        way = f" The command at that scale: {row.full}" if row.full else ""
        raise ConfigError(f"{config.name} was never measured here, at no scale; there is nothing to compare with.{way}")
    if config.output_dir is None:
        raise ConfigError("--output-dir is missing: the folder of the run.")
    seconds = _run(row.ours, config, config.output_dir)
    measured = read_json(config.output_dir / row.ours.metrics)
    verdicts = list(judge(row.ours, measured))
    header = ["figure", "paper", "on record", "now", ""]
    sys.stdout.write(text_table(header, [_judged(verdict, row.paper) for verdict in verdicts]) + "\n")
    figures = [asdict(verdict) for verdict in verdicts]
    write_json(config.output_dir / VERDICTS, {"row": config.name, "seconds": seconds, "figures": figures})
    if wrong := [verdict.key for verdict in verdicts if not verdict.holds]:
        raise NotReproducedError(f"{config.name}: {', '.join(wrong)} outside the interval on record.")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A figure of a run beside the one on record with its interval."""

    key: str
    value: float
    on_record: float
    least: float
    greatest: float

    @property
    def holds(self) -> bool:
        return self.least <= self.value <= self.greatest


def judge(ours: Measured, measured: Mapping[str, Any]) -> Iterator[Verdict]:
    """One verdict for every figure that is expected.

    Raises:
        DataError: a figure is missing.
    """
    for key, (value, least, greatest) in ours.expected.items():
        if key not in measured:
            raise DataError(ours.metrics, f"holds no {key}.")
        yield Verdict(key=key, value=float(measured[key]), on_record=value, least=least, greatest=greatest)


def _run(ours: Measured, config: ReproduceConfig, output: Path) -> float:
    """Run the command; returns seconds."""
    places = {"data": config.data, "model": config.model, "output": output}
    if absent := [name for name, value in places.items() if value is None and f"{{{name}}}" in ours.command]:
        raise ConfigError(f"--{absent[0]} is missing; the command is: {ours.command}")
    command = ours.command.format_map({name: shlex.quote(str(value)) for name, value in places.items()})
    get_logger("reproduce").info("about %s hours on two CPU cores: %s", ours.hours, command)
    started = time.monotonic()
    status = subprocess.run(["bash", "-c", command], env={**os.environ, "UNTIL": ours.until}, check=False).returncode
    if status:
        raise DataError(config.name, f"its command ended with status {status}; a second start continues: {command}")
    return time.monotonic() - started


def _listed(name: str, row: Row) -> Iterator[str]:
    yield f"{name}: {row.about}"
    if row.paper:
        yield f"  paper  {_scores(row.paper.scores)}  ({row.paper.source}; {row.paper.at})"
    if row.ours:
        figures = _scores({key: value for key, (value, _, _) in row.ours.expected.items()})
        yield f"  ours   {figures}  ({row.ours.at}; {row.ours.hours:g} hours)"
    elif row.full:
        yield f"  not measured here; {row.full}"


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {percent(value)}" for key, value in scores.items())


def _judged(verdict: Verdict, paper: Published | None) -> list[str]:
    published = paper.scores.get(verdict.key) if paper else None
    return [
        verdict.key,
        "" if published is None else percent(published),
        f"{percent(verdict.on_record)} [{percent(verdict.least)}, {percent(verdict.greatest)}]",
        percent(verdict.value),
        "as on record" if verdict.holds else "DIFFERENT",
    ]
