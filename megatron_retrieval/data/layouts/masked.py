"""How a masked text and a passage become one sequence for a masked language model (Guu et al. 2020, REALM, arXiv
2002.08909, section 3.2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from megatron_retrieval.data.layouts.extractive import QuestionRoomConfig
from megatron_retrieval.data.layouts.sequences import format_question_and_text
from megatron_retrieval.data.stores.ragged import Ragged, Rows
from megatron_retrieval.tokenizers.vocabulary import SpecialIds
from megatron_retrieval.types.extractive import ExtractivePassages
from megatron_retrieval.types.tokens import TokenBatch


@dataclass(kw_only=True, frozen=True)
class MaskedFormatConfig(QuestionRoomConfig):
    """Layout of a masked text together with a passage: [CLS] masked text [SEP] text [SEP], of two segments. Titles are
    for the retriever only."""

    def lay_out(self, questions: Ragged, texts: Ragged, is_null: Rows, special: SpecialIds) -> ExtractivePassages:
        """The sequences of P pairs of a masked text and a passage's text; [CLS] masked text [SEP] where `is_null` [P]
        bool says that there is no passage."""
        cut = questions.take(np.arange(len(questions)), self.question_seq_length)
        pairs = format_question_and_text(cut, texts, special, self.reader_seq_length)
        # but for what an empty text adds
        lengths = pairs.tokens.lengths - special.num_between * torch.from_numpy(is_null).long()
        return dataclasses.replace(pairs, tokens=TokenBatch(pairs.tokens.ids, lengths))
