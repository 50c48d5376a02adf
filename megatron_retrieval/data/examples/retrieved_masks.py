"""What a masked language model reads of passages that were found a moment ago: each together with the masked text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.data.examples.retrieved_fusion import PassageColumns
from megatron_retrieval.data.layouts.masked import MaskedFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Ragged, Rows
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.extractive import ExtractivePassages
from megatron_retrieval.types.search import FILLER_ROW, NULL_ROW


@dataclass(frozen=True)
class MaskedTexts:
    """n masked texts, each with K passages, of which P are no fillers.

    Attributes:
        slots: [P] int64, number of the text * K + place of the passage.
        sequences: P of them, the text together with the passage.
        columns: [P, L] int64, where the text's masked tokens stand, -1 behind them.
        labels: [n, L] int64, what they hide, -1 behind them.
    """

    slots: Tensor
    sequences: ExtractivePassages
    columns: Tensor
    labels: Tensor


class RetrievedMasks:
    """Masked texts together with rows of the evidence.

    Raises:
        ConfigError: the vocabulary has no mask token.
    """

    def __init__(self, evidence: EvidenceStore, layout: MaskedFormatConfig, tokenizer: Vocabulary) -> None:
        if tokenizer.special.mask is None:
            raise ConfigError(
                f"The vocabulary {tokenizer.path} has no mask token, which a masked language model needs."
            )
        self._columns, self._layout, self._special = PassageColumns(evidence, tokenizer), layout, tokenizer.special

    def find(self, questions: Ragged, targets: Ragged, rows: Rows) -> MaskedTexts:
        """Lay out masked texts with their passages.

        Args:
            questions: n of them, a mask token for each token that is hidden.
            targets: n times what the mask tokens hide, in their order.
            rows: [n, K]; a text is read alone where it has nothing but `FILLER_ROW`, and for `NULL_ROW`.

        Raises:
            ConfigError: masks are cut off.
        """
        rows = rows.copy()
        rows[(rows == FILLER_ROW).all(1), 0] = NULL_ROW
        slots = np.flatnonzero(rows.ravel() != FILLER_ROW)
        owners, own = slots // rows.shape[1], rows.ravel()[slots]
        is_null = own == NULL_ROW
        distinct = np.unique(own[~is_null])
        texts = self._columns.take(distinct)[1]
        # the null passage's text is that of nobody, of length 0
        places = np.searchsorted(distinct, own[~is_null])
        lengths = np.where(is_null, 0, np.iinfo(np.int64).max)
        passages = np.zeros(len(own), np.int64)
        passages[~is_null] = places
        taken = texts.take(passages, lengths) if len(distinct) else _nothing(len(own))
        laid_out = self._layout.lay_out(questions.take(owners), taken, is_null, self._special)
        columns, labels = self._masks(questions, targets)
        return MaskedTexts(torch.from_numpy(slots), laid_out, columns[owners], labels)

    def _masks(self, questions: Ragged, targets: Ragged) -> tuple[Tensor, Tensor]:
        """[n, L] columns of the masks, and [n, L] what they hide."""
        longest = int(targets.lengths.max(initial=0))
        columns, labels = (torch.full((len(questions), longest), -1) for _ in range(2))
        for row, hidden in enumerate(targets.lengths.tolist()):
            found = np.flatnonzero(questions[row] == self._special.mask)
            seen = found[found < self._layout.question_seq_length]
            if len(seen) != hidden:
                longest = self._layout.question_seq_length
                raise ConfigError(
                    f"a text hides {hidden} tokens, of which {len(seen)} are among the first {longest} that its reader "
                    "sees: raise --question-seq-length."
                )
            columns[row, :hidden] = torch.from_numpy(seen + len(self._special.frame) - 1)
            labels[row, :hidden] = torch.from_numpy(targets[row].astype(np.int64))
        return columns, labels


def _nothing(num_rows: int) -> Ragged:
    return Ragged(np.zeros(0, np.int32), np.zeros(num_rows + 1, np.int64))
