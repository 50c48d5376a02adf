"""Evaluates a reader on questions with their passages; each rank answers its share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Protocol

from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.evaluation.exact_match import AnswerScore, AnswerScoreConfig, score_answer
from megatron_retrieval.evaluation.predictions import Prediction
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.progress import progress_bar

#: questions in one call of a reader, which batches their passages itself
BLOCK_QUESTIONS = 32


class Reader(Protocol):
    """Answers questions from their passages."""

    def answer(self, questions: Sequence[ReaderQuestion]) -> list[Prediction]:
        """One prediction per question, in order; an empty text where there is nothing to read.

        A collective over tensor-parallel ranks, which give the same questions. The model must be in evaluation mode.
        """
        ...

    def num_long(self, answers: Sequence[str]) -> int:
        """How many of these answers exceed the reader's length limit."""
        ...


def evaluate_reader(
    questions: Iterable[ReaderQuestion],
    reader: Reader,
    scoring: AnswerScoreConfig,
    topology: ProcessTopology,
    *,
    show_progress: bool = True,
) -> list[tuple[Prediction, AnswerScore]]:
    """Answer all questions; a collective over all ranks, each of which gets the whole result, in order.

    Blocks of questions are cut before they are distributed, so that batches do not depend on the data-parallel size.
    Questions may be a stream: one block is held at a time.
    """
    own: dict[int, list[tuple[Prediction, AnswerScore]]] = {}
    with progress_bar("reading", "questions", visible=show_progress and topology.is_main) as bar:
        for number, block in _blocks(questions):
            if number % topology.dp_size == topology.dp_rank:
                predictions = reader.answer(block)
                own[number] = [
                    (prediction, score_answer(prediction.text, question.answers, scoring))
                    for question, prediction in zip(block, predictions, strict=True)
                ]
            bar.update(len(block))
    everything = {number: part for share in gather_objects(own, topology.groups.dp) for number, part in share.items()}
    return [result for number in sorted(everything) for result in everything[number]]


def _blocks(questions: Iterable[ReaderQuestion]) -> Iterator[tuple[int, list[ReaderQuestion]]]:
    stream = iter(questions)
    for number in count():
        block = list(islice(stream, BLOCK_QUESTIONS))
        if not block:
            return
        yield number, block
