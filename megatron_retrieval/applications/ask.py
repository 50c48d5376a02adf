"""Questions asked in the terminal: one, or one after another."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import tyro

from megatron_retrieval.applications.answering import (
    Answered,
    AnsweringConfig,
    open_answering,
    require_one_process,
)
from megatron_retrieval.applications.search import SearchMethod
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.documents.place import Place
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.reports.terminal import bold, found_lines, uses_color

_PROMPT = "question: "


@dataclass(kw_only=True, frozen=True)
class AskConfig(Checked):
    """Answer a question from the evidence, or one after another."""

    question: tyro.conf.Positional[str | None] = None
    """The question; default: ask for one after another, until an empty line or the end of the input."""
    topk: PositiveInt = 3
    """Passages to print."""
    method: SearchMethod | None = None
    """How to search; default: by encoder and BM25 where both are given."""
    color: bool | None = None
    """Use bold and underline; default: where the output is a terminal and NO_COLOR is not set."""
    answering: AnsweringConfig
    """What is searched, and what answers."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""


def ask(config: AskConfig, topology: ProcessTopology) -> None:
    """Print the answer to each question, where it is from, and the best passages.

    Raises:
        ConfigError: several processes, or a method that what is given does not have.
    """
    require_one_process(topology, "ask")
    session = open_answering(config.answering, topology)
    methods = session.search.methods
    if config.method not in (None, *methods):
        raise ConfigError(f"--method {config.method}: what is given is searched by {' or '.join(methods)}.")
    for question in _asked() if config.question is None else [config.question]:
        if session.reader is None:
            (answered,) = session.find([question], config.topk, config.method)
        else:
            (answered,) = session.answer([question], config.topk, config.method)
        sys.stdout.write(_lines(answered, config.topk, uses_color(config.color)))
        sys.stdout.flush()


def _asked() -> Iterator[str]:
    """What a person types, or the lines of a file."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # lines that were typed before come back
    with contextlib.suppress(EOFError):
        while question := input(_PROMPT if sys.stdin.isatty() else "").strip():
            yield question


def _place(passage_id: str) -> str:
    """File and page of a document's passage; of other evidence its id."""
    place = Place.of(passage_id)
    return f"id {passage_id}" if place is None else str(place)


def _lines(answered: Answered, topk: int, in_color: bool) -> str:
    if not answered.found:
        return "No passage was found.\n\n"
    prediction, lines = answered.prediction, ""
    if prediction is not None:
        if answered.source is None:
            source = ""
        else:
            passage, _ = answered.found[answered.source]
            source = f"  (from {passage.title or passage.id}, {_place(passage.id)})"
        lines = f"{bold(prediction.text or 'no answer in these passages', in_color)}{source}\n\n"
    answers = [prediction.text] if prediction is not None else []
    return lines + found_lines(answered.found[:topk], answered.question, answers, in_color=in_color)
