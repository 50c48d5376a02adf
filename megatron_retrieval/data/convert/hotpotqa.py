"""HotpotQA: questions that need two paragraphs, each with ten paragraphs of which some sentences support the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from megatron_retrieval.data.convert.common import (
    Example,
    PassageFile,
    Window,
    cut_passages,
    passage_file,
    to_windows,
    write_examples,
)
from megatron_retrieval.data.convert.registry import CONVERTERS, Converter, DatasetConverterConfig
from megatron_retrieval.data.files.json_records import Record, read_json_list
from megatron_retrieval.data.files.sniff import stem
from megatron_retrieval.errors import DataError
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.answer_text import normalized
from megatron_retrieval.utils.scripts import split_words

#: answers that any text may contain by chance, so that finding them means nothing
_NO_STRINGS = frozenset({"yes", "no"})


@dataclass(frozen=True)
class Paragraph:
    """A paragraph in its passages.

    Attributes:
        sentence_ends: where each sentence ends, in words.
    """

    title: str
    passages: tuple[Passage, ...]
    sentence_ends: tuple[int, ...]

    def supporting(self, sentences: Sequence[int], passage_words: int) -> list[Passage]:
        """The passages that hold words of the sentences; all of them where the file names sentences beyond the end."""
        spans = [
            (([0, *self.sentence_ends][number]) // passage_words, (self.sentence_ends[number] - 1) // passage_words)
            for number in sentences
            if number < len(self.sentence_ends)
        ]
        places = {place for first, last in spans for place in range(first, last + 1)}
        return [passage for place, passage in enumerate(self.passages) if place in places or not spans]


@dataclass(frozen=True)
class HotpotQuestion:
    """A question and its paragraphs."""

    record: Record
    paragraphs: tuple[Paragraph, ...]
    passage_words: int

    def example(self) -> Example:
        """The supporting passages, those with the answer first, and passages of other paragraphs without it."""
        answer = self.record.text("answer")
        text = "" if answer.lower() in _NO_STRINGS else normalized(answer)
        facts = self._facts()
        positives: list[Window] = []
        others: list[Window] = []
        for paragraph in self.paragraphs:
            sentences = [number for title, number in facts if title == paragraph.title]
            if sentences:
                positives += to_windows(paragraph.supporting(sentences, self.passage_words))
            else:
                others += to_windows(paragraph.passages)
        positives.sort(key=lambda window: not window.contains_any([text]))
        negatives = [window for window in others if not text or not window.contains_any([text])]
        return Example(
            self.record.identifier("_id", "id"),
            self.record.text("question"),
            (answer,),
            tuple(window.passage for window in positives),
            tuple(window.passage for window in negatives),
        )

    def _facts(self) -> list[tuple[str, int]]:
        facts = self.record.values.get("supporting_facts")
        if not isinstance(facts, list) or not all(map(_is_fact, facts)):
            raise _error(self.record, "'supporting_facts' must be a list of [title, number of the sentence]")
        return [(title, number) for title, number in facts]


def convert_hotpotqa(config: DatasetConverterConfig, folder: Path) -> None:
    """Write the paragraphs of all inputs, each once, and the questions of each input.

    Raises:
        DataError: an input is no HotpotQA file with answers.
    """
    known: dict[bytes, int] = {}
    with passage_file(folder, config) as passages:
        for path in config.input:
            questions = islice(_questions(path, passages, known), 0, None, config.question_stride)
            write_examples(folder, stem(path), (question.example() for question in questions), config)


def _questions(path: str, passages: PassageFile, known: dict[bytes, int]) -> Iterator[HotpotQuestion]:
    """Yield the questions, whose passages are then written.

    Args:
        known: first passage of every paragraph that is written, by a hash of title and text.
    """
    is_empty = True
    for record in read_json_list(path):
        is_empty = False
        paragraphs = tuple(_paragraph(title, texts, passages, known) for title, texts in _context(record))
        yield HotpotQuestion(record, paragraphs, passages.words)
    if is_empty:
        raise DataError(path, "there are no questions in the file")


def _paragraph(title: str, sentences: Sequence[str], passages: PassageFile, known: dict[bytes, int]) -> Paragraph:
    text = " ".join(sentences)
    name = hashlib.blake2b(f"{title}\n{text}".encode(), digest_size=16).digest()
    ends, num_words = [], 0
    for sentence in sentences:
        num_words += len(split_words(sentence))
        ends.append(num_words)
    if name in known:
        return Paragraph(title, cut_passages(title, split_words(text), passages.words, known[name]), tuple(ends))
    known[name] = passages.num_passages + 1
    return Paragraph(title, passages.add(title, text), tuple(ends))


def _context(record: Record) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Title and sentences of every paragraph."""
    context = record.values.get("context")
    if not isinstance(context, list) or not all(isinstance(entry, list) and len(entry) == 2 for entry in context):
        raise _error(record, "'context' must be a list of [title, [sentence, ...]]")
    for title, sentences in context:
        paragraph = replace(record, values={"title": title, "sentences": sentences})
        yield paragraph.text("title"), paragraph.strings("sentences")


def _is_fact(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    title, number = value
    return isinstance(title, str) and isinstance(number, int) and number >= 0


def _error(record: Record, problem: str) -> DataError:
    """The id says where: a file may be one line."""
    return record.error(f"question {record.identifier('_id', 'id') or '?'}: {problem}")


CONVERTERS.add(
    Converter(
        "hotpotqa",
        "HotpotQA JSON with ten paragraphs a question; written: passages, questions, training data",
        convert_hotpotqa,
    )
)
