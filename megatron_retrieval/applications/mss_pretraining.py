"""Pretraining by masked sentences, with a page of sentences in words in the output folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.end_to_end import mss, realm
from megatron_retrieval.recipes.end_to_end.build import run_end_to_end
from megatron_retrieval.recipes.end_to_end.mss import MssPretrainingConfig
from megatron_retrieval.recipes.end_to_end.realm import RealmPretrainingConfig
from megatron_retrieval.reports.masked_page import PAGE, write_masked_page


def main(config: MssPretrainingConfig, topology: ProcessTopology) -> None:
    """Train, or embed beside those that train; leaves configuration, metrics and run record in --output-dir."""
    _run(mss.build, config, topology)


def train_realm(config: RealmPretrainingConfig, topology: ProcessTopology) -> None:
    """The same, with a masked language model."""
    _run(realm.build, config, topology)


def _run(build: Callable[..., Any], config: MssPretrainingConfig, topology: ProcessTopology) -> None:
    write_page = partial(write_masked_page, Path(config.training.log.output_dir) / PAGE)
    run_end_to_end(partial(build, write_page=write_page), config, topology)
