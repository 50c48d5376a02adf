"""Natural Questions, open: questions and answers without passages (Lee et al. 2019, arXiv 1906.00300)."""

from __future__ import annotations

from pathlib import Path

from megatron_retrieval.data.convert.common import write_questions
from megatron_retrieval.data.convert.registry import CONVERTERS, Converter, DatasetConverterConfig
from megatron_retrieval.data.files.json_records import read_json_lines


def convert_nq_open(config: DatasetConverterConfig, folder: Path) -> None:
    """Write the questions of each input.

    Raises:
        DataError: a line is not a question with answers.
    """
    for path in config.input:
        rows = ((record.text("question"), record.strings("answer", "answers")) for record in read_json_lines(path))
        write_questions(folder, path, rows, config.question_stride)


CONVERTERS.add(Converter("nq-open", "JSON lines of Natural Questions, open; written: questions", convert_nq_open))
