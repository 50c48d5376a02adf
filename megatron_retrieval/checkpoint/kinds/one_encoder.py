"""Models of one encoder with heads over it; their shape is the encoder's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES, family_marks
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription, EncoderPart, Layout, Model, ModelKind, fill_parts
from megatron_retrieval.config.parser import from_flat_dict
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.logging import get_logger

OneShape = TypeVar("OneShape", bound=EncoderShape)
#: the attribute of the encoder
_ENCODER = "bert"

log = get_logger("checkpoint")


class OneEncoderKind(ModelKind[OneShape, Layout, Model]):
    """See ModelKind. Such a model may start from the encoder of another: then its heads are new."""

    def encoder_part(self, shape: OneShape) -> EncoderPart:
        """See ModelKind."""
        return EncoderPart(shape, f"{_ENCODER}.", f"the {self.name}'s encoder")

    def start(self, model: Model, source: AnyDescription, topology: ProcessTopology) -> None:
        """See ModelKind."""
        part: tuple[nn.Module, str] = model, ""
        if source.kind is not self:
            part = model.get_submodule(_ENCODER), source.encoder.prefix
            log.info("%s: %s is taken; the heads of the %s are new.", source.folder, source.encoder.title, self.name)
        fill_parts([part], source, topology)


class FamilyEncoderKind(OneEncoderKind[EncoderShape, Layout, Model]):
    """See ModelKind; the encoder is of any family."""

    def read_shape(self, settings: Mapping[str, Any]) -> EncoderShape:
        """See ModelKind."""
        return from_flat_dict(ENCODER_FAMILIES.saved(settings).shape, settings)

    def vocabulary(self, shape: EncoderShape) -> str:
        """See ModelKind."""
        return ENCODER_FAMILIES.of(shape).vocabulary

    def marks(self, shape: EncoderShape) -> dict[str, Any]:
        """See ModelKind."""
        return family_marks(shape)
