"""Models of one encoder with heads over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, cast

from torch import nn

from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES, family_marks
from megatron_retrieval.checkpoint.kinds.kind import (
    AnyDescription,
    EncoderPart,
    Layout,
    Model,
    ModelKind,
    Shape,
    fill_parts,
)
from megatron_retrieval.config.parser import from_flat_dict
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.logging import get_logger


class HasEncoder(Protocol):
    """A shape with more to it than the encoder's."""

    @property
    def encoder(self) -> EncoderShape: ...


Nested = TypeVar("Nested", bound=HasEncoder)
#: the attribute of the encoder
_ENCODER = "bert"

log = get_logger("checkpoint")


class OneEncoderKind(ModelKind[Shape, Layout, Model]):
    """See ModelKind; the shape is the encoder's. Such a model may start from the encoder of another: then its heads are
    new."""

    def encoder_of(self, shape: Shape) -> EncoderShape:
        """The encoder's shape."""
        return cast(EncoderShape, shape)

    def encoder_part(self, shape: Shape) -> EncoderPart:
        """See ModelKind."""
        return EncoderPart(self.encoder_of(shape), f"{_ENCODER}.", f"the {self.name}'s encoder")

    def start(self, model: Model, source: AnyDescription, topology: ProcessTopology) -> None:
        """See ModelKind."""
        part: tuple[nn.Module, str] = model, ""
        if source.kind is not self:
            part = model.get_submodule(_ENCODER), source.encoder.prefix
            log.info("%s: %s is taken; the heads of the %s are new.", source.folder, source.encoder.title, self.name)
        fill_parts([part], source, topology)


class AnyFamilyKind(OneEncoderKind[Shape, Layout, Model]):
    """See ModelKind; the encoder is of any family."""

    def vocabulary(self, shape: Shape) -> str:
        """See ModelKind."""
        return ENCODER_FAMILIES.of(self.encoder_of(shape)).vocabulary

    def marks(self, shape: Shape) -> dict[str, Any]:
        """See ModelKind."""
        return family_marks(self.encoder_of(shape))


class FamilyEncoderKind(AnyFamilyKind[EncoderShape, Layout, Model]):
    """See ModelKind; the encoder is of any family, and its shape is the model's."""

    def read_shape(self, settings: Mapping[str, Any]) -> EncoderShape:
        """See ModelKind."""
        return from_flat_dict(ENCODER_FAMILIES.saved(settings).shape, settings)


class NestedEncoderKind(AnyFamilyKind[Nested, Layout, Model]):
    """See ModelKind; the encoder is of any family, and its shape is a part of the model's."""

    def encoder_of(self, shape: Nested) -> EncoderShape:
        """See OneEncoderKind."""
        return shape.encoder

    def read_shape(self, settings: Mapping[str, Any]) -> Nested:
        """See ModelKind."""
        return from_flat_dict(self.shape_class, settings, {EncoderShape: ENCODER_FAMILIES.saved(settings).shape})
