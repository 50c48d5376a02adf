"""SQuAD: articles of paragraphs with questions whose answers are spans of the paragraph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from megatron_retrieval.data.convert.common import (
    Example,
    PassageFile,
    Window,
    passage_file,
    to_windows,
    write_examples,
)
from megatron_retrieval.data.convert.registry import CONVERTERS, Converter, DatasetConverterConfig
from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.data.files.sniff import stem
from megatron_retrieval.data.files.squad_json import read_paragraphs
from megatron_retrieval.utils.answer_text import normalized
from megatron_retrieval.utils.logging import get_logger

log = get_logger("data")


@dataclass(frozen=True)
class SquadQuestion:
    """A question, the windows of its own paragraph, and those of the whole article."""

    record: Record
    paragraph: tuple[Window, ...]
    article: tuple[Window, ...]

    def example(self) -> Example:
        """The first window of its paragraph that holds an answer, and the article's that hold none."""
        texts = tuple(dict.fromkeys(answer.text("text") for answer in self.record.records("answers")))
        answers = [normalized(text) for text in texts]
        positives = tuple(window.passage for window in self.paragraph if window.contains_any(answers))
        negatives = tuple(window.passage for window in self.article if not window.contains_any(answers))
        return Example(self.record.identifier("id"), self.record.text("question"), texts, positives[:1], negatives)


def convert_squad(config: DatasetConverterConfig, folder: Path) -> None:
    """Write the passages of all inputs, and the questions of each.

    Raises:
        DataError: an input is no SQuAD file.
    """
    with passage_file(folder, config) as passages:
        for path in config.input:
            unanswerable: list[str] = []
            questions = islice(_questions(path, passages, unanswerable), 0, None, config.question_stride)
            write_examples(folder, stem(path), (question.example() for question in questions), config)
            if unanswerable:
                log.info("%s: %s unanswerable questions left out", path, f"{len(unanswerable):,}")


def _questions(path: str, passages: PassageFile, unanswerable: list[str]) -> Iterator[SquadQuestion]:
    """Yield the questions of every article, whose passages are then written.

    Args:
        unanswerable: gets the ids of the questions without an answer (SQuAD 2.0), which are left out: in an open domain
            another passage may answer them.
    """
    for title, records in read_paragraphs(path):
        paragraphs = [
            (to_windows(passages.add(title, paragraph.text("context"))), paragraph.records("qas"))
            for paragraph in records
        ]
        article = tuple(window for windows, _ in paragraphs for window in windows)
        for windows, qas in paragraphs:
            for record in qas:
                if record.values.get("is_impossible") or not record.records("answers", required=False):
                    unanswerable.append(record.identifier("id"))
                else:
                    yield SquadQuestion(record, windows, article)


CONVERTERS.add(Converter("squad", "SQuAD JSON; written: passages, questions, training data", convert_squad))
