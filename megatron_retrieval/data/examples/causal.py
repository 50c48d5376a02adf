"""Training data of causal readers: a prompt with a question's passages, and one of its answers to learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.data.examples.fusion import AnswerDataset
from megatron_retrieval.data.examples.retrieved_fusion import RetrievedTexts
from megatron_retrieval.data.files.passage_questions import ReaderQuestion, ReaderTrainingDataConfig
from megatron_retrieval.data.layouts.joint import JointLayout
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Ragged, Rows, to_offsets, tokenize
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.causal import ContinuedBatch, continued
from megatron_retrieval.types.tokens import TokenBatch


class PromptDataset(AnswerDataset[ContinuedBatch]):
    """See AnswerDataset; all passages of a question stand in one prompt."""

    def __init__(
        self,
        data: ReaderTrainingDataConfig,
        layout: JointLayout,
        tokenizer: Vocabulary,
        *,
        max_answer_length: int,
        seed: int,
    ) -> None:
        self._prompts = layout
        super().__init__(data, layout, tokenizer, max_answer_length=max_answer_length, seed=seed)

    def answers(self, question: ReaderQuestion) -> tuple[str, ...]:
        """See AnswerDataset."""
        return tuple(self._prompts.answer_lead + answer for answer in super().answers(question))

    def lay_out(
        self, questions: Ragged, passages: Ragged, columns: tuple[Ragged, Ragged], labels: Tensor
    ) -> ContinuedBatch:
        """See AnswerDataset."""
        prompts = self._prompts.together(questions, passages, columns)
        num_fillers = len(labels) - len(prompts)
        ids = torch.cat([prompts.ids, prompts.ids.new_zeros(num_fillers, prompts.ids.size(1))])
        lengths = torch.cat([prompts.lengths, prompts.lengths.new_ones(num_fillers)])
        return continued(replace(prompts, ids=ids, lengths=lengths), labels)


class RetrievedPrompts(RetrievedTexts):
    """See RetrievedTexts: prompts with one passage each, or with all of a question's."""

    def __init__(
        self, evidence: EvidenceStore, layout: JointLayout, tokenizer: Vocabulary, *, max_answer_length: int
    ) -> None:
        super().__init__(evidence, layout, tokenizer, max_answer_length=max_answer_length)
        self._prompts, self._tokenizer = layout, tokenizer

    def together(self, questions: Ragged, rows: Rows) -> TokenBatch:
        """The prompts of n questions with all of their passages; for arguments see `texts`."""
        is_read = rows >= 0
        distinct = np.unique(rows[is_read])
        passages = Ragged(np.searchsorted(distinct, rows[is_read]), to_offsets(is_read.sum(1)))
        return self._prompts.together(questions, passages, self.columns.take(distinct))

    def labels(self, answers: Ragged) -> Tensor:
        """See RetrievedTexts."""
        if lead := self._prompts.answer_lead:
            texts = self._tokenizer.decode([answers[row].tolist() for row in range(len(answers))])
            answers = tokenize(self._tokenizer, [lead + text for text in texts])
        return super().labels(answers)
