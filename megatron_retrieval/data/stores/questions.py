"""The question store: questions with answers as text and as token ids, memory-mapped, addressed by rows 0 to N - 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_retrieval.data.stores.column_folder import ColumnFolder, column_format, offsets_file
from megatron_retrieval.data.stores.ragged import Ragged, Rows
from megatron_retrieval.types.questions import Question

#: a row for each question: UTF-8 text, and token ids in the vocabularies of retriever and reader
IDS, TEXTS, QUERIES, QUESTIONS = "ids", "texts", "retriever_tokens", "reader_tokens"
#: a row for each answer of each question in turn, and for each gold passage
ANSWERS, ANSWER_TOKENS, GOLD_IDS = "answers", "answer_tokens", "gold_ids"
#: offsets alone: the answers, and the gold passages, of each question
ANSWERS_OF, GOLD_OF = "answers_of", "gold_of"


class QuestionStore(ColumnFolder):
    """Opens what `write_question_store` wrote, in constant time and memory; every question has an answer.

    Attributes:
        retriever_queries: token ids of the questions, in the retriever's vocabulary.
        reader_questions: the same in the reader's vocabulary.
        answers: token ids of all answers, in the reader's vocabulary.
        answers_of: [N + 1] question q has the answers `answers_of[q]` to `answers_of[q + 1]`.

    Args:
        folder: of the questions.

    Raises:
        DataError: the folder is missing, incomplete or damaged.
    """

    format = column_format(
        "questions", "num_questions", "query_column", "token_dtypes", hint="Remove the folder: training writes it anew."
    )

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._num_questions: int = self._manifest["num_questions"]
        self.answers_of, self._gold_of = self._groups(ANSWERS_OF), self._groups(GOLD_OF)
        num_answers, num_gold = int(self.answers_of[-1]), int(self._gold_of[-1])
        self._ids, self._texts = (self._column(name, np.uint8, len(self)) for name in (IDS, TEXTS))
        self._answer_texts = self._column(ANSWERS, np.uint8, num_answers)
        self._gold_ids = self._column(GOLD_IDS, np.uint8, num_gold)
        dtypes, queries = self._manifest["token_dtypes"], self._manifest["query_column"]
        self.retriever_queries = self._column(queries, dtypes[queries], len(self))
        self.reader_questions = self._column(QUESTIONS, dtypes[QUESTIONS], len(self))
        self.answers = self._column(ANSWER_TOKENS, dtypes[QUESTIONS], num_answers)

    def __len__(self) -> int:
        return self._num_questions

    def question(self, row: int) -> Question:
        """A question as text, prepared as it is asked, with its answers."""
        answers = self._texts_of(self._answer_texts, self.answers_of, row)
        identifier, text = (column[row].tobytes().decode() for column in (self._ids, self._texts))
        return Question(identifier, text, answers, self.gold_ids(row))

    def gold_ids(self, row: int) -> tuple[str, ...]:
        """External ids of the passages that the file names as the question's own."""
        return self._texts_of(self._gold_ids, self._gold_of, row)

    def _groups(self, name: str) -> Rows:
        groups: Rows = self._map(offsets_file(name), "<i8")
        self._check_offsets(name, groups, len(self), int(groups[-1]))
        return groups

    @staticmethod
    def _texts_of(column: Ragged, groups: Rows, row: int) -> tuple[str, ...]:
        return tuple(column[item].tobytes().decode() for item in range(groups[row], groups[row + 1]))
