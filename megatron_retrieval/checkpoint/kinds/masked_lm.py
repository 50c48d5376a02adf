"""Masked language models of BERT's: shape and vocabulary travel with the weights."""

from __future__ import annotations

from megatron_retrieval.checkpoint.kinds.encoder_families import BERT, ENCODER_FAMILIES
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.one_encoder import OneEncoderKind
from megatron_retrieval.checkpoint.kinds.reader import ReaderModelKind
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.masked_lm import MaskedLanguageModel


class MaskedLMKind(
    ReaderModelKind[BertConfig, None, MaskedLanguageModel], OneEncoderKind[BertConfig, None, MaskedLanguageModel]
):
    """See ModelKind; a reader of masked texts (REALM), which keeps no layout of them."""

    name = "masked-lm"
    about = "a BERT with the head of its pretraining"
    starts_from = ("dual-encoder", "masked-lm")
    reads = ("masked-lm",)
    shape_class, model_class, vocabulary_name = BertConfig, MaskedLanguageModel, BERT.vocabulary

    def shape_from(self, source: AnyDescription) -> BertConfig:
        """The shape of a masked language model that starts there.

        Raises:
            CheckpointError: its encoder is no BERT.
        """
        shape = source.encoder.shape
        if not isinstance(shape, BertConfig):
            family = ENCODER_FAMILIES.of(shape).name
            raise CheckpointError(f"{source.folder}: its encoder is of the family {family}; a {self.name} has a BERT.")
        return shape


MASKED_LM = MaskedLMKind()
