"""Datasets of several formats, and documents, to passages, questions and training data of DPR's formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_retrieval.data.convert.common import DatasetConverterConfig
from megatron_retrieval.data.convert.documents import convert_text
from megatron_retrieval.data.convert.hotpotqa import convert_hotpotqa
from megatron_retrieval.data.convert.question_lists import convert_nq_open, convert_popqa
from megatron_retrieval.data.convert.squad import convert_squad
from megatron_retrieval.data.files.passage_files import stem
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.utils.files import atomic_directory

_CONVERTERS: dict[str, Callable[[DatasetConverterConfig, Path], None]] = {
    "squad": convert_squad,
    "hotpotqa": convert_hotpotqa,
    "popqa": convert_popqa,
    "nq-open": convert_nq_open,
    "text": convert_text,
}


def convert_dataset(config: DatasetConverterConfig) -> None:
    """Write the files of the output folder, which appears whole or not at all.

    Raises:
        DataError: an input is malformed, or the output exists.
        ConfigError: two inputs have the same name.
    """
    names = [stem(path) for path in config.input]
    if config.format != "text" and len(set(names)) < len(names):
        raise ConfigError(f"--input: the files need different names, not {', '.join(names)}.")
    with atomic_directory(config.output) as folder:
        _CONVERTERS[config.format](config, folder)
