"""Masked language models: shape and vocabulary travel with the weights."""

from __future__ import annotations

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.one_encoder import FamilyEncoderKind
from megatron_retrieval.checkpoint.kinds.reader import ReaderModelKind
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.masked_lm import MaskedLanguageModel


class MaskedLMKind(
    ReaderModelKind[EncoderShape, None, MaskedLanguageModel], FamilyEncoderKind[None, MaskedLanguageModel]
):
    """See ModelKind; a reader of masked texts (REALM), which keeps no layout of them."""

    name = "masked-lm"
    about = "an encoder with the head of its pretraining"
    starts_from = ("dual-encoder", "masked-lm")
    reads = ("masked-lm",)
    model_class = MaskedLanguageModel

    def shape_from(self, source: AnyDescription) -> EncoderShape:
        """The shape of a masked language model that starts there.

        Raises:
            CheckpointError: its encoder does not see what follows a token.
        """
        shape = source.encoder.shape
        if shape.is_causal:
            raise CheckpointError(
                f"{source.folder}: its encoder is a causal language model; a {self.name} sees what follows a token too."
            )
        return shape


MASKED_LM = MaskedLMKind()
