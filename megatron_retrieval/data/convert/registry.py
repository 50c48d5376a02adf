"""What a converter is, the registry of converters, and the settings that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from megatron_retrieval.config.checks import Checked, NonNegativeInt, PositiveInt
from megatron_retrieval.config.choices import OneOf
from megatron_retrieval.data.files.sentences import check_language
from megatron_retrieval.utils.registry import Registry


@dataclass(frozen=True)
class Converter:
    """A format of data sets that can be converted.

    Attributes:
        name: the choice of `--format`.
        about: what is read and which files are written, for `--help`.
        convert: writes the files into the given folder; raises DataError where an input is malformed.
        writes_a_file_per_input: files are named after their input, so that the names of the inputs must differ.
    """

    name: str
    about: str
    convert: Callable[[DatasetConverterConfig, Path], None]
    writes_a_file_per_input: bool = True


CONVERTERS = Registry[Converter]("format")


@dataclass(frozen=True, kw_only=True)
class DatasetConverterConfig(Checked):
    """Convert a question-answering data set, or documents, into passages, questions and DPR training data."""

    format: Annotated[str, OneOf(CONVERTERS)]
    """Format of the inputs."""
    input: tuple[str, ...]
    """Files of the data set, plain or gzip; their passages are numbered in this order, from 1."""
    output: str
    """Folder to create. It gets the passages of all inputs in psgs_w100.tsv (100: --passage-words) and, for each
    input, questions with answers in NAME.qa.csv and training data in biencoder-NAME.json."""
    num_hard_negatives: NonNegativeInt = 5
    """Maximum number of hard negatives of a question. They are drawn from passages that do not contain an answer."""
    question_stride: PositiveInt = 1
    """Keep every n-th question of each input, beginning with the first."""
    passage_words: PositiveInt = 100
    """Maximum length of a passage in words, divided by white space; in Chinese, Japanese, Thai, ... each character is
    one."""
    cut: Literal["words", "sentences"] = "words"
    """Where documents of the format text are cut. words: after --passage-words words; sentences: at the last sentence
    end before that."""
    language: str = "en"
    """Language whose rules find sentence ends for --cut sentences (ISO 639 code)."""
    queries: str | None = None
    """Questions with ids, for --format passage-ids."""
    corpus: tuple[str, ...] = ()
    """Passages with ids, for --format passage-ids."""
    seed: int = 1234
    """Seed for the choice of hard negatives."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_language(self.language)
