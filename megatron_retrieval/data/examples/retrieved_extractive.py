"""What an extractive reader reads of passages that were found a moment ago: those that hold an answer, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_retrieval.data.examples.answer_spans import AnswerFinder, span_columns
from megatron_retrieval.data.examples.retrieved_fusion import PassageColumns
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Ragged, Rows, token_dtype
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.extractive import ExtractivePassages
from megatron_retrieval.types.tokens import to_device


@dataclass(frozen=True)
class AnswerPassages:
    """Of K passages for each of n questions, the P that hold an answer; from the others nothing can be learned.

    Attributes:
        slots: [P] int64, number of the question * K + place of the passage.
        passages: P of them, each together with its question.
        spans: [P, A, 2] int64, first and last column of each occurrence of an answer, at least one in every passage
            unless others are among them as well; -1 where there are fewer than A.
    """

    slots: Tensor
    passages: ExtractivePassages
    spans: Tensor

    def rows(self, index: Tensor) -> AnswerPassages:
        """The rows `index`, cut like their tokens; all of it on the CPU."""
        return AnswerPassages(self.slots[index], self.passages.rows(index), self.spans[index])

    def to(self, device: torch.device) -> AnswerPassages:
        slots, spans = (to_device(column, device) for column in (self.slots, self.spans))
        return AnswerPassages(slots, self.passages.to(device), spans)


class RetrievedAnswers:
    """Questions together with rows of the evidence that hold one of their answers, as whole words.

    Args:
        layout: of question and passage.
        max_answer_length: in tokens; longer answers are not learned.
    """

    def __init__(
        self,
        evidence: EvidenceStore,
        layout: ExtractiveFormatConfig,
        tokenizer: Vocabulary,
        *,
        max_answer_length: int,
    ) -> None:
        self._columns, self._layout, self._tokenizer = PassageColumns(evidence, tokenizer), layout, tokenizer
        self._max_answer_length = max_answer_length
        self._dtype = np.dtype(token_dtype(tokenizer.vocab_size))
        self._finder = AnswerFinder(tokenizer, self._dtype)

    def find(
        self, questions: Ragged, answers: Sequence[Ragged], rows: Rows, *, everything: bool = False
    ) -> AnswerPassages:
        """Every occurrence of every answer in the part of the text that is read.

        Args:
            everything: passages without an answer as well, without spans.
            questions: n of them, as ids of the reader's vocabulary.
            answers: n times all answers of a question.
            rows: [n, K], `FILLER_ROW` and `NULL_ROW`, which holds no answer, behind a question's own ones.
        """
        distinct = np.unique(rows[rows >= 0])
        titles, texts = self._columns.take(distinct)
        occurrences = self._occurrences(questions, answers, rows, distinct, (titles, texts))
        read = [(slot, spans) for slot, spans in occurrences if spans or everything]
        slots, found = [slot for slot, _ in read], [spans for _, spans in read]
        owners, places = np.divmod(np.array(slots, np.int64), rows.shape[1])
        passages = np.searchsorted(distinct, rows[owners, places])
        laid_out = self._layout.lay_out(
            questions.take(owners), titles.take(passages), texts.take(passages), self._tokenizer.special
        )
        columns = span_columns(found, laid_out.text_starts.tolist())
        return AnswerPassages(torch.tensor(slots, dtype=torch.int64), laid_out, columns)

    def holds(self, questions: Ragged, answers: Sequence[Ragged], rows: Rows) -> NDArray[np.bool_]:
        """[n, C] bool, which of many candidates hold an answer where the reader would see it, as whole words."""
        distinct = np.unique(rows[rows >= 0])
        held = np.zeros(rows.size, np.bool_)
        for slot, spans in self._occurrences(questions, answers, rows, distinct, self._columns.take(distinct)):
            held[slot] = bool(spans)
        return held.reshape(rows.shape)

    def _occurrences(
        self,
        questions: Ragged,
        answers: Sequence[Ragged],
        rows: Rows,
        distinct: Rows,
        columns: tuple[Ragged, Ragged],
    ) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """The slot of each passage, and the places of answers in it; `columns` are titles and texts of `distinct`."""
        titles, texts = columns
        for number, (own_answers, own) in enumerate(zip(answers, rows, strict=True)):
            needles = self._needles(own_answers)
            for place, passage in enumerate(np.searchsorted(distinct, own[own >= 0]).tolist()):
                lengths = len(questions[number]), len(titles[passage])
                room = self._layout.room_for_text(*lengths, self._tokenizer.special)
                yield number * rows.shape[1] + place, self._spans(texts, passage, needles, room)

    def _needles(self, answers: Ragged) -> list[bytes]:
        lengths = answers.lengths
        learned = np.flatnonzero((lengths > 0) & (lengths <= self._max_answer_length))
        return [needle for number in learned.tolist() for needle in self._finder.needles(answers[number].tolist())]

    def _spans(self, texts: Ragged, passage: int, needles: Sequence[bytes], room: int) -> list[tuple[int, int]]:
        """Those that end within the first `room` tokens."""
        text = texts[passage].astype(self._dtype, copy=False).tobytes()
        return [span for span in self._finder.spans(text, needles) if span[1] < room]
