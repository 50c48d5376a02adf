"""Layouts of readers that read all passages of a question at once."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.types.tokens import TokenBatch


class JointLayout(ABC):
    """How a question and any number of passages become one text.

    Attributes:
        end_id: last token of an answer.
        pad_id: fills rows behind their ends.
        answer_lead: stands between the text and an answer.
    """

    end_id: int
    pad_id: int
    answer_lead: str = ""

    @abstractmethod
    def together(self, questions: Ragged, passages: Ragged, columns: tuple[Ragged, Ragged]) -> TokenBatch:
        """The texts of n questions.

        Args:
            questions: n sequences.
            passages: of each question, rows of `columns`; where there are none, it is asked alone.
            columns: titles and texts.
        """

    @abstractmethod
    def longest(self, num_passages: int) -> int:
        """Tokens of the longest text of a question with so many passages."""

    def with_passages(self, questions: Ragged, titles: Ragged, texts: Ragged) -> TokenBatch:
        """The texts of P pairs of question and passage."""
        numbers = np.arange(len(texts))
        return self.together(questions, Ragged(numbers, np.arange(len(texts) + 1)), (titles, texts))

    def alone(self, questions: Ragged) -> TokenBatch:
        """The texts of questions that no passage goes with."""
        none = Ragged(questions.values[:0], np.zeros(len(questions) + 1, np.int64))
        return self.together(questions, none, (none, none))
