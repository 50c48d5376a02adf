"""Builds a folder of salient spans, and shows masked sentences."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from megatron_retrieval.config.checks import Checked, NonNegativeInt
from megatron_retrieval.data.salient.builder import SpanBuilderConfig, build_salient_spans
from megatron_retrieval.data.salient.shown import shown_sentences
from megatron_retrieval.data.stores.salient import SpanStore


@dataclass(kw_only=True, frozen=True)
class BuildSalientSpansConfig(Checked):
    """Find names and dates in sentences, to be masked (train mss)."""

    show: NonNegativeInt = 0
    """Print so many masked sentences, evenly spaced, for a person to judge; of a folder that is there already they are
    all that is done."""
    build: SpanBuilderConfig = field()
    """What is built."""


def main(config: BuildSalientSpansConfig) -> None:
    """Build the folder unless it is there to be shown, and print masked sentences."""
    folder = Path(config.build.output)
    if not config.show or not folder.exists():
        build_salient_spans(config.build)
    for sentence, span, hidden in shown_sentences(SpanStore(folder), config.show) if config.show else ():
        sys.stdout.write(f"{sentence}\n    {span.type}: {hidden}\n")
