"""Late interaction: shape, text layout and vocabulary travel with the weights."""

from __future__ import annotations

from typing import TypeAlias

from megatron_retrieval.checkpoint.kinds.dual_encoder import text_format_within
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription, Loaded
from megatron_retrieval.checkpoint.kinds.one_encoder import NestedEncoderKind
from megatron_retrieval.data.layouts.late import LateFormatConfig, with_default_markers
from megatron_retrieval.models.late_interaction import LateInteraction, LateInteractionConfig


class LateInteractionKind(NestedEncoderKind[LateInteractionConfig, LateFormatConfig, LateInteraction]):
    """See ModelKind."""

    name = "late-interaction"
    about = "questions and passages to vectors of their tokens, compared one by one (ColBERT)"
    starts_from = ("dual-encoder", "masked-lm", "late-interaction")
    shape_class, layout_class, model_class = LateInteractionConfig, LateFormatConfig, LateInteraction

    def layout_from(self, source: AnyDescription, default: LateFormatConfig) -> LateFormatConfig:
        """Its text layout; that of another kind is `default`, with sequences no longer than the encoder's positions and
        with the markers that its vocabulary has tokens for."""
        if source.kind is self:
            layout: LateFormatConfig = source.layout
            return layout
        within = text_format_within(default, source.encoder.shape)
        return with_default_markers(within, source.vocabulary())


LATE_INTERACTION = LateInteractionKind()
LoadedLateInteraction: TypeAlias = Loaded[LateInteractionConfig, LateFormatConfig, LateInteraction]
