"""Cross-encoders: shape, text layout and vocabulary travel with the weights."""

from __future__ import annotations

from typing import TypeAlias

from megatron_retrieval.checkpoint.kinds.kind import Loaded
from megatron_retrieval.checkpoint.kinds.one_encoder import FamilyEncoderKind
from megatron_retrieval.data.layouts.pair import PairFormatConfig
from megatron_retrieval.models.cross_encoder import CrossEncoder
from megatron_retrieval.models.encoder import EncoderShape


class CrossEncoderKind(FamilyEncoderKind[PairFormatConfig, CrossEncoder]):
    """See ModelKind."""

    name = "cross-encoder"
    about = "an encoder that scores a passage for a question, read together"
    starts_from = ("dual-encoder", "masked-lm", "cross-encoder")
    layout_class, model_class = PairFormatConfig, CrossEncoder


CROSS_ENCODER = CrossEncoderKind()
LoadedCrossEncoder: TypeAlias = Loaded[EncoderShape, PairFormatConfig, CrossEncoder]
