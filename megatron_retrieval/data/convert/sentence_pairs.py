"""Pairs without labels: a sentence of a passage asks for the rest of it (Inverse Cloze Task, Lee et al. 2019, §5).

Beside labelled questions (--train-data-weights) they keep an encoder to what it was good at elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from megatron_retrieval.data.convert.common import Example, biencoder_record
from megatron_retrieval.data.convert.registry import CONVERTERS, Converter, DatasetConverterConfig
from megatron_retrieval.data.files.dpr_json import write_json_list
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.files.sentences import split_sentences
from megatron_retrieval.data.files.sniff import stem
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.seeds import generator


def convert_sentence_pairs(config: DatasetConverterConfig, folder: Path) -> None:
    """Write training data for each input, a record for every `question_stride`-th passage of two sentences or more.

    Raises:
        DataError: an input is no file of passages, or no passage has two sentences.
    """
    for path in config.input:
        pairs = (biencoder_record(stem(path), pair, config) for pair in _pairs(path, config))
        if not (written := write_json_list(folder / f"biencoder-{stem(path)}.json", pairs)):
            raise DataError(path, "no passage has two sentences")
        get_logger("data").info("%s: %s sentences with the rest of their passages", stem(path), f"{written:,}")


def _pairs(path: str, config: DatasetConverterConfig) -> Iterator[Example]:
    """The seed and the passage's id draw the sentence."""
    for _, passage in islice(read_passages(path), 0, None, config.question_stride):
        sentences = split_sentences(passage.text, config.language)
        if len(sentences) > 1:
            place = int(generator(config.seed, "sentence", passage.id).integers(len(sentences)))
            question = sentences.pop(place)
            yield Example(passage.id, question, (), (replace(passage, text=" ".join(sentences)),), ())


CONVERTERS.add(
    Converter(
        "sentence-pairs",
        "passages; written: training data, in which a sentence asks for the rest",
        convert_sentence_pairs,
    )
)
