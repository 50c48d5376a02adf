"""Cross-encoders: shape, text layout and vocabulary travel with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription, Loaded
from megatron_retrieval.checkpoint.kinds.one_encoder import NestedEncoderKind
from megatron_retrieval.data.layouts.pair import PairFormatConfig
from megatron_retrieval.models.cross_encoder import CrossEncoder, CrossEncoderConfig


class CrossEncoderKind(NestedEncoderKind[CrossEncoderConfig, PairFormatConfig, CrossEncoder]):
    """See ModelKind."""

    name = "cross-encoder"
    about = "an encoder that scores a passage for a question, read together"
    starts_from = ("dual-encoder", "masked-lm", "extractive-reader", "cross-encoder")
    shape_class, layout_class, model_class = CrossEncoderConfig, PairFormatConfig, CrossEncoder

    def read_shape(self, settings: Mapping[str, Any]) -> CrossEncoderConfig:
        """See ModelKind; a manifest that does not say how states are pooled was written before there was a choice."""
        return super().read_shape({"pooling": CrossEncoderConfig.pooling, **settings})

    def shape_from(self, source: AnyDescription) -> CrossEncoderConfig:
        """The shape of a cross-encoder that starts there."""
        if source.kind is self:
            shape: CrossEncoderConfig = source.shape
            return shape
        return CrossEncoderConfig(encoder=source.encoder.shape)


CROSS_ENCODER = CrossEncoderKind()
LoadedCrossEncoder: TypeAlias = Loaded[CrossEncoderConfig, PairFormatConfig, CrossEncoder]
