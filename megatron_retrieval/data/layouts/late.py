"""How questions and passages become token sequences for late interaction (ColBERT, Khattab & Zaharia 2020, arXiv
2004.12832, section 3.2)."""

from __future__ import annotations

import string
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.config.checks import NonNegativeInt
from megatron_retrieval.data.layouts.sequences import PassageFormat, SeqLength, TextFormatConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.tokens import TokenBatch

#: a text in front of a punctuation mark, which stands alone behind it in every vocabulary
_BEFORE = "a"


@dataclass(frozen=True, kw_only=True)
class LateFormatConfig(TextFormatConfig):
    """Layout of questions and passages that are compared token by token; the defaults are ColBERT's."""

    passage_format: PassageFormat = "title-text"
    query_seq_length: SeqLength = 32
    retriever_seq_length: SeqLength = 180
    query_marker_id: NonNegativeInt | None = None
    """Token id behind [CLS] that marks a question; default: as the checkpoint has it, [unused0] of a BERT that has it,
    else none."""
    passage_marker_id: NonNegativeInt | None = None
    """Token id behind [CLS] that marks a passage; default: likewise, [unused1]."""
    query_augmentation: bool = True
    """Fill questions up to --query-seq-length with [MASK], whose vectors are compared as well."""
    attend_to_mask_tokens: bool = False
    """The question's other tokens see these [MASK]s; they see the question in any case."""
    mask_punctuation: bool = True
    """Leave punctuation in passages out of the comparison."""

    @property
    def query_lead(self) -> tuple[int, ...]:
        """See TextFormatConfig."""
        return () if self.query_marker_id is None else (self.query_marker_id,)

    @property
    def passage_lead(self) -> tuple[int, ...]:
        """See TextFormatConfig."""
        return () if self.passage_marker_id is None else (self.passage_marker_id,)

    def require_mask(self, vocabulary: Vocabulary) -> None:
        """Refuse a vocabulary that questions cannot be filled up from.

        Raises:
            ConfigError: it has no [MASK].
        """
        if self.query_augmentation and vocabulary.special.mask is None:
            raise ConfigError("the vocabulary has no [MASK] to fill questions up with: give --no-query-augmentation.")

    def augmented(self, questions: TokenBatch, mask: int) -> TokenBatch:
        """Questions filled up with [MASK], [B, query_seq_length] ids. What lies behind their lengths is not seen by the
        tokens before it, but counts like them."""
        ids = questions.ids.new_full((len(questions), self.query_seq_length), mask)
        own = questions.ids[:, : self.query_seq_length]
        ids[:, : own.size(1)] = own.where(questions.is_real()[:, : own.size(1)], mask)
        whole = torch.full_like(questions.lengths, self.query_seq_length)
        return TokenBatch(ids, whole if self.attend_to_mask_tokens else questions.lengths)

    def is_left_out(self, vocabulary: Vocabulary, num_ids: int) -> Tensor:
        """[num_ids] bool, which tokens of passages are not compared: single marks of ASCII's punctuation."""
        left_out = torch.zeros(num_ids, dtype=torch.bool)
        if self.mask_punctuation:
            before, *behind = vocabulary.encode([_BEFORE, *(_BEFORE + mark for mark in string.punctuation)])
            marks = {ids[-1] for ids in behind if ids[:-1] == before}
            left_out[list(marks - {vocabulary.special.unknown})] = True
        return left_out


def with_default_markers(layout: LateFormatConfig, vocabulary: Vocabulary) -> LateFormatConfig:
    """The layout with the markers that a vocabulary has unused tokens for, where it names none."""
    tokens = getattr(vocabulary, "tokens", ())
    unused = {"query_marker_id": "[unused0]", "passage_marker_id": "[unused1]"}
    found: dict[str, Any] = {
        name: tokens.index(token) for name, token in unused.items() if getattr(layout, name) is None and token in tokens
    }
    return replace(layout, **found)
