"""What a fusion reader reads of passages that were found a moment ago, by their rows in the evidence."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from megatron_retrieval.data.examples.fusion import TextLayout, fuse_texts
from megatron_retrieval.data.layouts.sequences import label_rows
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Ragged, Rows, to_offsets, tokenize
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.search import FILLER_ROW, NULL_ROW
from megatron_retrieval.types.tokens import TokenBatch


class PassageColumns:
    """Titles and texts of rows of the evidence, as token ids of a reader's vocabulary.

    Where that is the evidence's own, stored ids are read; else the passages are tokenized.
    """

    def __init__(self, evidence: EvidenceStore, tokenizer: Vocabulary) -> None:
        self._evidence, self._tokenizer = evidence, tokenizer
        self._is_stored = evidence.vocabulary.fingerprint == tokenizer.fingerprint

    def take(self, rows: Rows) -> tuple[Ragged, Ragged]:
        """The titles and the texts of `rows`, whole."""
        if self._is_stored:
            return self._evidence.token_columns(rows)
        passages = self._evidence.passages(rows)
        titles, texts = [passage.title for passage in passages], [passage.text for passage in passages]
        return tokenize(self._tokenizer, titles), tokenize(self._tokenizer, texts)


class RetrievedTexts:
    """Questions together with rows of the evidence.

    Args:
        max_answer_length: in tokens with the end token; longer answers are cut before it.
    """

    def __init__(
        self,
        evidence: EvidenceStore,
        layout: TextLayout,
        tokenizer: Vocabulary,
        *,
        max_answer_length: int,
    ) -> None:
        self.columns, self._layout = PassageColumns(evidence, tokenizer), layout
        self._max_answer_length = max_answer_length

    def texts(self, questions: Ragged, rows: Rows) -> tuple[TokenBatch, Tensor]:
        """Lay out questions with their passages.

        Args:
            questions: n of them, as ids of the reader's vocabulary.
            rows: [n, K], `FILLER_ROW` behind a question's own ones; a question is read alone where it has none, and
                for `NULL_ROW`.

        Returns:
            n * K texts, and [n, K] bool, False for fillers.
        """
        distinct = np.unique(rows[rows >= 0])
        is_real = rows != FILLER_ROW
        own = rows[is_real]
        places = np.where(own == NULL_ROW, NULL_ROW, np.searchsorted(distinct, own))
        passages = Ragged(places, to_offsets(is_real.sum(1)))
        shape = (len(questions), max(1, rows.shape[1]))
        return fuse_texts(self._layout, questions, passages, self.columns.take(distinct), shape)

    def labels(self, answers: Ragged) -> Tensor:
        """[n, L] int64, the answers with their end tokens, -1 behind them."""
        cut = answers.take(np.arange(len(answers)), self._max_answer_length - 1)
        return label_rows(cut, len(answers), self._layout.end_id)
