"""Training data of readers that write: a question's passages, and one of its answers to learn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.data.examples.answer_draw import draw_answers
from megatron_retrieval.data.examples.batches import Share
from megatron_retrieval.data.examples.passage_tokens import PassageTokens, RaggedBuilder
from megatron_retrieval.data.files.passage_questions import (
    QuestionCensus,
    ReaderQuestion,
    ReaderTrainingDataConfig,
    read_training_questions,
)
from megatron_retrieval.data.layouts.sequences import label_rows
from megatron_retrieval.data.stores.ragged import Ragged, Rows, to_offsets, token_dtype
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.fusion import FusionBatch
from megatron_retrieval.types.search import NULL_ROW
from megatron_retrieval.types.tokens import TokenBatch
from megatron_retrieval.utils.logging import get_logger

_BLOCK_QUESTIONS = 256

log = get_logger("data")


class TextLayout(Protocol):
    """How a question and a passage become a text for a reader that writes.

    Attributes:
        end_id: last token of an answer.
        pad_id: fills rows behind their ends.
    """

    @property
    def end_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...

    def with_passages(self, questions: Ragged, titles: Ragged, texts: Ragged) -> TokenBatch:
        """The texts of P pairs of question and passage."""
        ...

    def alone(self, questions: Ragged) -> TokenBatch:
        """The texts of questions that no passage goes with."""
        ...


Batch = TypeVar("Batch")


class AnswerDataset(ABC, Generic[Batch]):
    """Questions with all of their passages and their answers; only token ids are kept.

    A BatchSource. Where the file names a target, that answer is learned. A question without passages, as all are in
    closed-book mode, is read alone.

    Args:
        data: the files, see `read_reader_questions`, and which of their passages are read.
        max_answer_length: in tokens with the end token; longer answers are cut before it.
        seed: of the run.

    Raises:
        DataError: a file is malformed, or no question has an answer.
    """

    def __init__(
        self,
        data: ReaderTrainingDataConfig,
        layout: TextLayout,
        tokenizer: Vocabulary,
        *,
        max_answer_length: int,
        seed: int,
    ) -> None:
        if max_answer_length < 2:
            raise ConfigError(f"--max-answer-length must be at least 2 with the end token, not {max_answer_length}.")
        self.layout, self._max_answer_length, self._seed = layout, max_answer_length, seed
        self.num_texts = 1 if data.reading.closed_book else data.reading.num_passages
        self._collect(data, tokenizer)
        if not len(self):
            raise DataError(data.train_data[0], "no question has an answer to learn")

    def __len__(self) -> int:
        return len(self._questions)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> Batch:
        """See BatchSource; of several answers one is drawn."""
        share = Share.of(len(indices), dp_rank, dp_size)
        questions = np.asarray(indices[share.own], np.int64)
        answers = self._answers.take(self._draw(questions, epoch, first_position + share.first))
        return self.lay_out(
            self._questions.take(questions),
            self._passages.take(questions),
            (self._titles, self._texts),
            label_rows(answers, share.num_slots, self.layout.end_id),
        )

    def answers(self, question: ReaderQuestion) -> tuple[str, ...]:
        """What may be learned."""
        return (question.target,) if question.target else question.answers

    @abstractmethod
    def lay_out(self, questions: Ragged, passages: Ragged, columns: tuple[Ragged, Ragged], labels: Tensor) -> Batch:
        """What is learned of n questions.

        Args:
            questions: n sequences.
            passages: of each question, rows of `columns`; there may be none.
            columns: titles and texts.
            labels: [B, L] int64, the answers with their end tokens, -1 behind them and in the fillers from row n on.
        """

    def _collect(self, data: ReaderTrainingDataConfig, tokenizer: Vocabulary) -> None:
        dtype, census = token_dtype(tokenizer.vocab_size), QuestionCensus()
        passages = PassageTokens(tokenizer.encode, dtype)
        questions, answers = RaggedBuilder(dtype), RaggedBuilder(dtype)
        numbers, num_answers = RaggedBuilder(np.int64), []
        stream = read_training_questions(data, census)
        while block := list(islice(stream, _BLOCK_QUESTIONS)):
            block = [question for question in block if self.answers(question)]
            found = iter(passages.add([passage for question in block for passage in question.passages]))
            texts = tokenizer.encode([question.text for question in block])
            own_answers = iter(tokenizer.encode([answer for question in block for answer in self.answers(question)]))
            for question, ids in zip(block, texts, strict=True):
                questions.append(ids)
                numbers.append([next(found) for _ in question.passages])
                num_answers.append(len(self.answers(question)))
                for _ in range(num_answers[-1]):
                    answer = next(own_answers)
                    census.num_answers_with_unknown_characters += tokenizer.special.unknown in answer
                    # the end token needs a place as well
                    census.num_long_answers += len(answer) >= self._max_answer_length
                    answers.append(answer[: self._max_answer_length - 1])
        census.log(", ".join(data.train_data))
        log.info("reader: %s questions to learn from, %s passages", f"{len(questions):,}", f"{len(passages):,}")
        self._questions, self._answers, self._passages = questions.finish(), answers.finish(), numbers.finish()
        self._first_answer = to_offsets(np.array(num_answers, np.int64))
        self._titles, self._texts = passages.titles.finish(), passages.texts.finish()

    def _draw(self, questions: Rows, epoch: int, first_position: int) -> Rows:
        """The number of an answer of each question."""
        first, end = self._first_answer[questions], self._first_answer[questions + 1]
        return first + draw_answers(end - first, self._seed, epoch, first_position)


class FusionDataset(AnswerDataset[FusionBatch]):
    """See AnswerDataset; every passage is a text of its own."""

    def lay_out(
        self, questions: Ragged, passages: Ragged, columns: tuple[Ragged, Ragged], labels: Tensor
    ) -> FusionBatch:
        """See AnswerDataset."""
        shape = (len(labels), self.num_texts)
        return FusionBatch(*fuse_texts(self.layout, questions, passages, columns, shape), labels)


def fuse_texts(
    layout: TextLayout,
    questions: Ragged,
    passages: Ragged,
    columns: tuple[Ragged, Ragged],
    shape: tuple[int, int],
) -> tuple[TokenBatch, Tensor]:
    """What a fusion reader reads of some questions.

    Args:
        questions: n sequences.
        passages: of each question, rows of `columns`; the question is read alone where there are none, and for each
            that is `NULL_ROW`.
        columns: titles and texts.
        shape: B >= n slots for questions, K texts for each.

    Returns:
        B * K texts, and [B, K] bool, False for fillers.
    """
    num_slots, num_texts = shape
    num_passages = passages.lengths
    is_real = np.zeros(shape, np.bool_)
    is_real[: len(questions)] = np.arange(num_texts) < np.maximum(num_passages, 1)[:, None]
    owner = np.repeat(np.arange(len(questions)), num_passages)
    rows = passages.values.astype(np.int64)
    is_null = rows == NULL_ROW
    titles, texts = (column.take(rows[~is_null]) for column in columns)
    read = layout.with_passages(questions.take(owner[~is_null]), titles, texts)
    slots = np.flatnonzero(is_real.ravel())
    is_alone = (num_passages == 0)[slots // num_texts]
    is_alone[~is_alone] = is_null
    alone = layout.alone(questions.take(slots[is_alone] // num_texts))
    ids = torch.full((num_slots * num_texts, max(read.ids.size(1), alone.ids.size(1))), layout.pad_id)
    lengths = torch.ones(len(ids), dtype=torch.int64)
    for part, places in ((read, slots[~is_alone]), (alone, slots[is_alone])):
        place = torch.from_numpy(places)
        ids[place, : part.ids.size(1)], lengths[place] = part.ids, part.lengths
    return read.in_rows(torch.from_numpy(slots[~is_alone]), ids, lengths), torch.from_numpy(is_real)
