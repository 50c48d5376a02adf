"""Answers of a reader that writes, generated from all passages of a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.data.examples.fusion import TextLayout, fuse_texts
from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.data.stores.ragged import Ragged, Rows, to_offsets, tokenize
from megatron_retrieval.evaluation.fusion_search import AnswerSearch, TextsReader, Written
from megatron_retrieval.evaluation.predictions import Prediction
from megatron_retrieval.evaluation.wordpiece_text import AnswerForms
from megatron_retrieval.models.generation import GenerationConfig
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.tokens import TokenBatch, by_length, real_lengths, rows_of_groups, to_device


@dataclass(frozen=True)
class ReadPassages:
    """Token ids of the passages of some questions; rows offsets[i] to offsets[i + 1] belong to question i."""

    offsets: Rows
    titles: Ragged
    texts: Ragged

    @property
    def numbers(self) -> Ragged:
        """The rows of each question's passages."""
        return Ragged(np.arange(len(self.texts)), self.offsets)


class GeneratedAnswerer:
    """See Reader in `evaluation.reader_task`; a question without passages is answered from its own text.

    Args:
        reader: in evaluation mode.
        layout: of question and passage, as in training.
        passage_scores: how passages' scores are used, as in training; default: they are ignored. Passages of questions
            without scores have equal weights.
        micro_batch_size: texts (question and passage) in one batch; all texts of a question share a batch.
    """

    def __init__(
        self,
        reader: TextsReader,
        tokenizer: Vocabulary,
        layout: TextLayout,
        config: GenerationConfig,
        topology: ProcessTopology,
        *,
        passage_scores: PassageScoreConfig | None = None,
        micro_batch_size: int = 128,
    ) -> None:
        self._tokenizer, self._layout, self._config = tokenizer, layout, config
        self._search = AnswerSearch(reader, config, passage_scores or PassageScoreConfig(), topology.groups.tp)
        self._device, self._micro_batch_size = topology.device, micro_batch_size
        self._forms = None if tokenizer.is_reversible else AnswerForms(tokenizer)

    def answer(self, questions: Sequence[ReaderQuestion]) -> list[Prediction]:
        """See Reader; the score is that of the search (`GenerationConfig`), or the log of the sum over passages where
        each is read separately."""
        read = self._tokenize(questions)
        texts, is_real = self.lay_out(tokenize(self._tokenizer, [question.text for question in questions]), read)
        scores = _scores(questions, is_real.size(1))
        num_tokens = real_lengths(texts, is_real).sum(1)
        # batches hold questions with a similar number of tokens
        batch_size = max(1, self._micro_batch_size // is_real.size(1))
        predictions = [Prediction("")] * len(questions)
        for index in by_length(num_tokens, batch_size, longest_first=True):
            own = texts.rows(rows_of_groups(index, is_real.size(1)))
            names = [questions[place].text for place in index.tolist()]
            found = self._search.find(own, is_real[index], to_device(scores[index], self._device), names)
            for place, written in zip(index.tolist(), found, strict=True):
                predictions[place] = self._prediction(written, questions[place], read, place)
        return predictions

    def num_long(self, answers: Sequence[str]) -> int:
        """See Reader; the end token counts."""
        return sum(len(ids) >= self._config.max_answer_length for ids in self._tokenizer.encode(answers))

    def _prediction(self, written: Written, question: ReaderQuestion, read: ReadPassages, place: int) -> Prediction:
        text = self.text(written.ids, question, read, place)
        # a question without passages has a text of its own
        passage = written.passage if question.passages else None
        return Prediction(text, written.score, passage, written.figures)

    def text(self, ids: Sequence[int], question: ReaderQuestion, read: ReadPassages, place: int) -> str:
        """The text of an answer to the question in this place."""
        if self._forms is None:
            return self._tokenizer.decode([ids])[0].strip()
        return self._forms.text(ids, question.passages, read.titles, read.texts, int(read.offsets[place]))

    def _tokenize(self, questions: Sequence[ReaderQuestion]) -> ReadPassages:
        passages = [passage for question in questions for passage in question.passages]
        return ReadPassages(
            to_offsets(np.array([len(question.passages) for question in questions], np.int64)),
            tokenize(self._tokenizer, [passage.title for passage in passages]),
            tokenize(self._tokenizer, [passage.text for passage in passages]),
        )

    def lay_out(self, questions: Ragged, read: ReadPassages) -> tuple[TokenBatch, Tensor]:
        """The texts [B * K] that the reader gets, and [B, K] bool, False for fillers."""
        shape = (len(questions), max(1, int(np.diff(read.offsets).max(initial=0))))
        return fuse_texts(self._layout, questions, read.numbers, (read.titles, read.texts), shape)


def _scores(questions: Sequence[ReaderQuestion], num_texts: int) -> Tensor:
    """[B, K] float32 scores of the passages, 0 where there are none."""
    scores = torch.zeros(len(questions), num_texts)
    for row, question in zip(scores, questions, strict=True):
        own = question.scores[:num_texts]
        row[: len(own)] = torch.tensor(own)
    return scores
