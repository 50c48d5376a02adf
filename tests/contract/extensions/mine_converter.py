"""A data set converter from outside the package: lines of `title | text | question | answer`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_retrieval.data.convert.common import Example, PassageFile, passage_file, write_examples
from megatron_retrieval.data.convert.registry import CONVERTERS, Converter, DatasetConverterConfig
from megatron_retrieval.data.files.sniff import stem
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_lines


def convert_mine(config: DatasetConverterConfig, folder: Path) -> None:
    """Write the passages of all inputs, and the questions of each with their training data."""
    with passage_file(folder, config) as passages:
        for path in config.input:
            write_examples(folder, stem(path), _examples(path, passages), config)


def _examples(path: str, passages: PassageFile) -> Iterator[Example]:
    for line, text in enumerate(read_lines(path), 1):
        fields = tuple(field.strip() for field in text.split("|"))
        if len(fields) != 4:
            raise DataError(path, f"expected 4 fields, found {len(fields)}", line=line)
        title, passage, question, answer = fields
        cut = passages.add(title, passage)
        positives = tuple(part for part in cut if answer in part.text)
        yield Example(str(line), question, (answer,), positives, tuple(part for part in cut if part not in positives))


CONVERTERS.add(Converter("mine", "lines of title | text | question | answer", convert_mine))
