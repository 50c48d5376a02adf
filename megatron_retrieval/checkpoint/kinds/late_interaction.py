"""Late interaction: shape, text layout and vocabulary travel with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import nn

from megatron_retrieval.checkpoint.kinds.dual_encoder import text_format_within
from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES, family_marks
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription, EncoderPart, Loaded, ModelKind, fill_parts
from megatron_retrieval.config.parser import from_flat_dict
from megatron_retrieval.data.layouts.late import LateFormatConfig, with_default_markers
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.late_interaction import LateInteraction, LateInteractionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.logging import get_logger

_ENCODER = "bert"

log = get_logger("checkpoint")


class LateInteractionKind(ModelKind[LateInteractionConfig, LateFormatConfig, LateInteraction]):
    """See ModelKind."""

    name = "late-interaction"
    about = "questions and passages to vectors of their tokens, compared one by one (ColBERT)"
    starts_from = ("dual-encoder", "masked-lm", "late-interaction")
    shape_class, layout_class, model_class = LateInteractionConfig, LateFormatConfig, LateInteraction

    def read_shape(self, settings: Mapping[str, Any]) -> LateInteractionConfig:
        """See ModelKind."""
        return from_flat_dict(LateInteractionConfig, settings, {EncoderShape: ENCODER_FAMILIES.saved(settings).shape})

    def vocabulary(self, shape: LateInteractionConfig) -> str:
        """See ModelKind."""
        return ENCODER_FAMILIES.of(shape.encoder).vocabulary

    def marks(self, shape: LateInteractionConfig) -> dict[str, Any]:
        """See ModelKind."""
        return family_marks(shape.encoder)

    def encoder_part(self, shape: LateInteractionConfig) -> EncoderPart:
        """See ModelKind."""
        return EncoderPart(shape.encoder, f"{_ENCODER}.", f"the {self.name}'s encoder")

    def layout_from(self, source: AnyDescription, default: LateFormatConfig) -> LateFormatConfig:
        """Its text layout; that of another kind is `default`, with sequences no longer than the encoder's positions and
        with the markers that its vocabulary has tokens for."""
        if source.kind is self:
            layout: LateFormatConfig = source.layout
            return layout
        within = text_format_within(default, source.encoder.shape)
        return with_default_markers(within, source.vocabulary())

    def start(self, model: LateInteraction, source: AnyDescription, topology: ProcessTopology) -> None:
        """See ModelKind: from an encoder, the linear layer over it is new."""
        part: tuple[nn.Module, str] = model, ""
        if source.kind is not self:
            part = model.get_submodule(_ENCODER), source.encoder.prefix
            log.info("%s: %s is taken; the linear layer over it is new.", source.folder, source.encoder.title)
        fill_parts([part], source, topology)


LATE_INTERACTION = LateInteractionKind()
LoadedLateInteraction: TypeAlias = Loaded[LateInteractionConfig, LateFormatConfig, LateInteraction]
