"""The short commands of `megatron-retrieval`: search, plan, info, verify."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import tyro

from megatron_retrieval.applications.info import machine_rows
from megatron_retrieval.applications.plan.config import PlanConfig
from megatron_retrieval.applications.plan.plan import PLAN, make_plan
from megatron_retrieval.applications.search import SearchConfig, open_search
from megatron_retrieval.applications.verify import VerifyConfig, verify
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.reports.terminal import found_lines, uses_color
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.utils.files import write_json


@dataclass(kw_only=True, frozen=True)
class SearchCommandConfig(Checked):
    """Print the passages nearest to a question, the words that speak of it in bold."""

    question: tyro.conf.Positional[str]
    """The question."""
    topk: PositiveInt = 5
    """Passages to print."""
    answer: tuple[str, ...] = ()
    """Answers to underline in the passages."""
    color: bool | None = None
    """Use bold and underline; default: where the output is a terminal and NO_COLOR is not set."""
    search: SearchConfig
    """What is searched."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How the question is encoded."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""


@dataclass(kw_only=True, frozen=True)
class InfoConfig:
    """Say what this machine is, what it is fast in (measured), and which defaults follow."""


def search(config: SearchCommandConfig, topology: ProcessTopology) -> None:
    """Print the best passages, each with rank, score, id and title."""
    session = open_search(config.search, config.encode, topology)
    (found,) = session.search([config.question], config.topk)
    if not topology.is_main:
        return
    in_color = uses_color(config.color)
    sys.stdout.write(found_lines(found, config.question, config.answer, in_color=in_color))


def plan(config: PlanConfig) -> None:
    """Print what a run takes, and what does not fit."""
    made = make_plan(config)
    if config.output_dir is not None:
        write_json(config.output_dir / PLAN, made.to_json())
    faults = "\n".join(f"Does not fit. {problem}" for problem in made.problems) or "Everything fits."
    table = text_table(["", "takes", "where"], made.rows())
    basis = "\n".join(made.basis())
    if aged := made.staleness_rows():
        head = ["embedding ranks", "steps a second", "a refresh", "steps meanwhile (staleness)"]
        table = f"{table}\n\n{text_table(head, aged)}"
    sys.stdout.write(f"{config.passages:,} passages\n\n{table}\n\n{faults}\n\n{basis}\n")


def info(config: InfoConfig) -> None:
    """Print what this machine is and what follows."""
    rows = machine_rows()
    width = max(len(name) for name, _ in rows)
    sys.stdout.write("".join(f"{name:{width}}  {value}\n" for name, value in rows))


def verify_folders(config: VerifyConfig) -> None:
    """Say of each folder that it is as it was written."""
    for folder in config.folders:
        sys.stdout.write(f"{verify(folder)}: every file is as it was written\n")
