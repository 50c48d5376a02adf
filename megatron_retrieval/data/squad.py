"""SQuAD to DPR's formats: passages of at most 100 words, questions, and biencoder training data."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_retrieval.data.biencoder import biencoder_context, write_json_list
from megatron_retrieval.data.json_records import Record
from megatron_retrieval.data.sources import stem
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.types import Passage
from megatron_retrieval.utils.answer_text import normalized
from megatron_retrieval.utils.files import atomic_directory, atomic_file, read_json
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.seeds import generator

PASSAGES = "psgs_w100.tsv"
WINDOW_WORDS = 100


@dataclass(frozen=True, kw_only=True)
class DatasetConverterConfig:
    """Convert a question-answering dataset into passages, questions and training data of DPR's formats."""

    format: Literal["squad"]
    """Format of the inputs; squad: SQuAD JSON (answer positions are not needed)."""
    input: tuple[str, ...]
    """Files of the dataset, plain or gzip; their passages are numbered in this order, from 1."""
    output: str
    """Folder to create: psgs_w100.tsv over all inputs and, for each, NAME.qa.csv and biencoder-NAME.json."""
    num_hard_negatives: int = 5
    """Hard negatives of each question, at most: passages of the same article without an answer."""
    question_stride: int = 1
    """Keep every n-th question of each input, beginning with the first."""
    seed: int = 1234
    """Chooses the hard negatives."""

    def __post_init__(self) -> None:
        if self.question_stride < 1 or self.num_hard_negatives < 0:
            raise ConfigError("--question-stride must be at least 1 and --num-hard-negatives at least 0.")


@dataclass(frozen=True)
class Window:
    """A passage cut from a paragraph, with its text normalised for answer matching."""

    passage: Passage
    normalized_text: str

    def contains_any(self, answers: Sequence[str]) -> bool:
        return any(answer in self.normalized_text for answer in answers)


@dataclass(frozen=True)
class SquadQuestion:
    """A question, the windows of its own paragraph, and those of the whole article."""

    id: str
    text: str
    answers: tuple[str, ...]
    paragraph: tuple[Window, ...]
    article: tuple[Window, ...]


def convert_squad(config: DatasetConverterConfig) -> None:
    """Write the files of the output folder, which appears whole or not at all.

    Raises:
        DataError: an input is no SQuAD file, or the output exists.
        ConfigError: two inputs have the same name.
    """
    names = [stem(path) for path in config.input]
    if len(set(names)) < len(names):
        raise ConfigError(f"--input: the files need different names, not {', '.join(names)}.")
    with atomic_directory(config.output) as folder:
        num_passages = 0
        with atomic_file(folder / PASSAGES) as file:
            passages = csv.writer(file, delimiter="\t")
            passages.writerow(("id", "text", "title"))
            for path, name in zip(config.input, names, strict=True):
                articles = list(read_articles(path, first_id=num_passages + 1))
                for windows, _ in articles:
                    passages.writerows((w.passage.id, w.passage.text, w.passage.title) for w in windows)
                    num_passages += len(windows)
                questions = [question for _, of_article in articles for question in of_article]
                _write_questions(folder, name, questions[:: config.question_stride], config)
    get_logger("data").info("%s passages in %s", f"{num_passages:,}", Path(config.output) / PASSAGES)


def read_articles(path: str | Path, first_id: int) -> Iterator[tuple[tuple[Window, ...], list[SquadQuestion]]]:
    """Yield the windows and the questions of every article; windows are numbered from `first_id`."""
    for title, records in read_paragraphs(path):
        paragraphs = []
        for paragraph in records:
            windows = tuple(_windows(title, paragraph.text("context"), first_id))
            first_id += len(windows)
            paragraphs.append((windows, paragraph.records("qas")))
        of_article = tuple(window for windows, _ in paragraphs for window in windows)
        yield of_article, [_question(record, windows, of_article) for windows, qas in paragraphs for record in qas]


def read_paragraphs(path: str | Path) -> Iterator[tuple[str, list[Record]]]:
    """Yield the title of every article and its paragraphs, as SQuAD's records; the file is held in memory.

    Raises:
        DataError: no SQuAD file, or no article in it.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(path, "expected a SQuAD JSON object")
    articles = Record(Path(path), None, content).records("data")
    if not articles:
        raise DataError(path, "there are no articles in the file")
    for article in articles:
        yield article.text("title").replace("_", " "), article.records("paragraphs")


def _windows(title: str, paragraph: str, first_id: int) -> Iterator[Window]:
    words = paragraph.split()
    for number, start in enumerate(range(0, len(words), WINDOW_WORDS)):
        text = " ".join(words[start : start + WINDOW_WORDS])
        yield Window(Passage(str(first_id + number), title, text), normalized(text))


def _question(record: Record, paragraph: tuple[Window, ...], article: tuple[Window, ...]) -> SquadQuestion:
    answers = dict.fromkeys(answer.text("text") for answer in record.records("answers"))
    return SquadQuestion(record.identifier("id"), record.text("question"), tuple(answers), paragraph, article)


def _write_questions(
    folder: Path, name: str, questions: Sequence[SquadQuestion], config: DatasetConverterConfig
) -> None:
    with atomic_file(folder / f"{name}.qa.csv") as file:
        csv.writer(file, delimiter="\t").writerows((question.text, list(question.answers)) for question in questions)
    records = (_biencoder_record(name, question, config) for question in questions)
    written = write_json_list(folder / f"biencoder-{name}.json", (record for record in records if record))
    get_logger("data").info(
        "%s: %s questions, %s of them with a positive passage (in the others no passage contains an answer)",
        *(name, f"{len(questions):,}", f"{written:,}"),
    )


def _biencoder_record(dataset: str, question: SquadQuestion, config: DatasetConverterConfig) -> dict[str, Any] | None:
    answers = [normalized(answer) for answer in question.answers]
    positive = next((window for window in question.paragraph if window.contains_any(answers)), None)
    if positive is None:
        return None
    candidates = [window for window in question.article if not window.contains_any(answers)]
    order = generator(config.seed, "hard-negatives", dataset, question.id).permutation(len(candidates))
    negatives = [candidates[place] for place in order[: config.num_hard_negatives]]
    return {
        "dataset": dataset,
        "question": question.text,
        "answers": list(question.answers),
        "positive_ctxs": [biencoder_context(positive.passage, score=1000)],
        "negative_ctxs": [],
        "hard_negative_ctxs": [biencoder_context(window.passage, score=0) for window in negatives],
    }
