"""What a masked language model puts in the place of masks, given passages (REALM, arXiv 2002.08909)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.data.layouts.masked import MaskedFormatConfig
from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.evaluation.predictions import Prediction
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.collectives import gather_rows
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.vocabulary import Vocabulary


class MaskFiller:
    """See Reader in `evaluation.reader_task`: the likeliest token of every mask, summed over passages.

    Args:
        model: in evaluation mode.
        tokenizer: gives the ids of texts, masks among them.
        layout: of text and passage, as in training.
        scores: what the scores of passages are divided by before they weigh them.
    """

    def __init__(
        self,
        model: MaskedLanguageModel,
        tokenizer: Vocabulary,
        layout: MaskedFormatConfig,
        topology: ProcessTopology,
        scores: PassageScoreConfig,
    ) -> None:
        self._model, self._tokenizer, self._layout, self._topology = model, tokenizer, layout, topology
        self._divisor = scores.passage_score_divisor

    @torch.no_grad()
    def answer(self, questions: Sequence[ReaderQuestion]) -> list[Prediction]:
        """See Reader; the tokens as one text, and the sum of their log-likelihoods."""
        return [self._fill(question) for question in questions]

    def num_long(self, answers: Sequence[str]) -> int:
        """See Reader: masks say how long an answer is."""
        return 0

    def _fill(self, question: ReaderQuestion) -> Prediction:
        special, num_passages = self._tokenizer.special, len(question.passages)
        asked = tokenize(self._tokenizer, [question.text])
        seen = asked[0][: self._layout.question_seq_length]
        columns = torch.from_numpy(np.flatnonzero(seen == special.mask) + len(special.frame) - 1)
        if not len(columns):
            return Prediction("")
        texts = tokenize(self._tokenizer, [passage.text for passage in question.passages] or [""])
        is_alone = np.full(len(texts), num_passages == 0)
        read = self._layout.lay_out(asked.take(np.zeros(len(texts), np.int64)), texts, is_alone, special)
        read = read.to(self._topology.device)
        rows = torch.arange(len(texts))[:, None] * read.tokens.ids.size(1)
        logits = self._model(read.tokens, (rows + columns).flatten().to(self._topology.device), read.segments)
        likelihoods = (
            gather_rows(logits.T, self._topology.groups.tp).T.log_softmax(1).view(len(texts), len(columns), -1)
        )
        best, ids = (self._log_weights(question)[:, None, None] + likelihoods).logsumexp(0).max(1)
        return Prediction(self._tokenizer.decode([ids.tolist()])[0], float(best.sum()))

    def _log_weights(self, question: ReaderQuestion) -> Tensor:
        """[K] log p(z | x); equal ones without scores."""
        scores = torch.tensor(question.scores or (0.0,) * max(1, len(question.passages)))
        return (scores / self._divisor).log_softmax(0).to(self._topology.device)
