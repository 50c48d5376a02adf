"""Conversion of a data set by the converter that --format names."""

from __future__ import annotations

# each registers its format; modules of --extensions add others
from megatron_retrieval.data.convert import (  # noqa: F401
    documents,
    hotpotqa,
    nq_open,
    passage_ids,
    popqa,
    sentence_pairs,
    squad,
)
from megatron_retrieval.data.convert.registry import CONVERTERS, DatasetConverterConfig
from megatron_retrieval.data.files.sniff import stem
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.utils.files import atomic_directory


def convert_dataset(config: DatasetConverterConfig) -> None:
    """Write the files of the output folder, which appears complete or not at all.

    Raises:
        DataError: an input is malformed, or the output exists.
        ConfigError: two inputs have the same name.
    """
    converter = CONVERTERS[config.format]
    names = [stem(path) for path in config.input]
    if converter.writes_a_file_per_input and len(set(names)) < len(names):
        raise ConfigError(f"--input: the files need different names, not {', '.join(names)}.")
    with atomic_directory(config.output) as folder:
        converter.convert(config, folder)
