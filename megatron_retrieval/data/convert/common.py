"""Output files that converters share: numbered passages, questions, and DPR training data."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_retrieval.data.convert.registry import DatasetConverterConfig
from megatron_retrieval.data.files.dpr_json import biencoder_context, write_json_list
from megatron_retrieval.data.files.sniff import stem
from megatron_retrieval.errors import DataError
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.answer_text import normalized
from megatron_retrieval.utils.files import atomic_file
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.scripts import join_words, split_words
from megatron_retrieval.utils.seeds import generator


@dataclass(frozen=True)
class Window:
    """A passage cut from a paragraph, with its text normalised for answer matching."""

    passage: Passage
    normalized_text: str

    def contains_any(self, answers: Sequence[str]) -> bool:
        return any(answer in self.normalized_text for answer in answers)


@dataclass(frozen=True)
class Example:
    """A question with passages.

    Attributes:
        positives: training uses the first; a question without one is not written as training data.
        negatives: passages from which hard negatives are drawn.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    positives: tuple[Passage, ...]
    negatives: tuple[Passage, ...]


class PassageFile:
    """Writes psgs_w100.tsv; passages are numbered from 1."""

    def __init__(self, path: Path, words: int, files: contextlib.ExitStack) -> None:
        self.words, self.num_passages = words, 0
        self._rows = csv.writer(files.enter_context(atomic_file(path)), delimiter="\t")
        self._rows.writerow(("id", "text", "title"))

    def add(self, title: str, text: str) -> tuple[Passage, ...]:
        """Write a text in passages of `words` words; returns them."""
        passages = cut_passages(title, split_words(text), self.words, self.num_passages + 1)
        for passage in passages:
            self.write(passage.title, passage.text)
        return passages

    def write(self, title: str, text: str) -> None:
        """Write one passage."""
        self.num_passages += 1
        self._rows.writerow((self.num_passages, text, title))


@contextlib.contextmanager
def passage_file(folder: Path, config: DatasetConverterConfig) -> Iterator[PassageFile]:
    """The passage file of the folder; it appears when the block succeeds."""
    name = f"psgs_w{config.passage_words}.tsv"
    with contextlib.ExitStack() as files:
        passages = PassageFile(folder / name, config.passage_words, files)
        yield passages
    get_logger("data").info("%s passages in %s", f"{passages.num_passages:,}", Path(config.output) / name)


def cut_passages(title: str, words: Sequence[str], size: int, first_id: int) -> tuple[Passage, ...]:
    """Cut the words (see `split_words`) into passages of `size` words, numbered from `first_id`; the last may be
    shorter."""
    starts = range(0, len(words), size)
    return tuple(
        Passage(str(first_id + number), title, join_words(words[start : start + size]))
        for number, start in enumerate(starts)
    )


def to_windows(passages: Iterable[Passage]) -> tuple[Window, ...]:
    return tuple(Window(passage, normalized(passage.text)) for passage in passages)


def write_questions(folder: Path, path: str, rows: Iterable[tuple[str, tuple[str, ...]]], stride: int) -> None:
    """Write every `stride`-th question of the input `path` with its answers to NAME.qa.csv.

    Raises:
        DataError: there are no questions.
    """
    count = 0
    with atomic_file(folder / f"{stem(path)}.qa.csv") as file:
        table = csv.writer(file, delimiter="\t")
        for question, answers in islice(rows, 0, None, stride):
            table.writerow((question, list(answers)))
            count += 1
    if not count:
        raise DataError(path, "there are no questions in the file")
    get_logger("data").info("%s: %s questions", stem(path), f"{count:,}")


def write_examples(folder: Path, name: str, examples: Iterable[Example], config: DatasetConverterConfig) -> None:
    """Write NAME.qa.csv and biencoder-NAME.json in one pass over the examples, which may be many."""
    num_questions = 0
    with atomic_file(folder / f"{name}.qa.csv") as file:
        table = csv.writer(file, delimiter="\t")

        def records() -> Iterator[dict[str, Any]]:
            nonlocal num_questions
            for example in examples:
                num_questions += 1
                table.writerow((example.question, list(example.answers)))
                if example.positives:
                    yield biencoder_record(name, example, config)

        written = write_json_list(folder / f"biencoder-{name}.json", records())
    get_logger("data").info(
        "%s: %s questions, %s of them with a positive passage (in the others no passage contains an answer)",
        *(name, f"{num_questions:,}", f"{written:,}"),
    )


def biencoder_record(dataset: str, example: Example, config: DatasetConverterConfig) -> dict[str, Any]:
    """An example as DPR's biencoder files hold it, with the hard negatives that the seed draws."""
    order = generator(config.seed, "hard-negatives", dataset, example.id).permutation(len(example.negatives))
    negatives = [example.negatives[place] for place in order[: config.num_hard_negatives]]
    return {
        "dataset": dataset,
        "question": example.question,
        "answers": list(example.answers),
        "positive_ctxs": [biencoder_context(passage, score=1000) for passage in example.positives],
        "negative_ctxs": [],
        "hard_negative_ctxs": [biencoder_context(passage, score=0) for passage in negatives],
    }
