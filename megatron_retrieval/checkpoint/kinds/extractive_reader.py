"""Extractive readers: shape, text layout and vocabulary travel with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription, Model
from megatron_retrieval.checkpoint.kinds.one_encoder import FamilyEncoderKind
from megatron_retrieval.checkpoint.kinds.reader import ReaderDescription, ReaderModelKind
from megatron_retrieval.checkpoint.store.manifest import CheckpointManifest
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.span_reader import SpanReader


class PointingReaderKind(
    ReaderModelKind[EncoderShape, ExtractiveFormatConfig, Model],
    FamilyEncoderKind[ExtractiveFormatConfig, Model],
):
    """See ModelKind; a reader that points to the answer in one of the passages."""

    layout_class = ExtractiveFormatConfig

    def read_layout(self, settings: Mapping[str, Any]) -> ExtractiveFormatConfig:
        """See ModelKind; a manifest that says nothing of titles was written when all readers read them."""
        return super().read_layout({"passage-title": True, **settings})

    def read(
        self, folder: Path, manifest: CheckpointManifest
    ) -> ReaderDescription[EncoderShape, ExtractiveFormatConfig, Model]:
        """See ModelKind."""
        found = super().read(folder, manifest)
        if found.passage_scores.passage_score_use == "bias":
            raise ConfigError("scores as a bias are for readers that write.")
        return found

    def shape_from(self, source: AnyDescription) -> EncoderShape:
        """The shape of a reader that starts there."""
        return source.encoder.shape


class ExtractiveReaderKind(PointingReaderKind[ExtractiveReader]):
    """See ModelKind."""

    name = "extractive-reader"
    about = "an encoder that points to the answer in one of the passages"
    starts_from = ("dual-encoder", "masked-lm", "extractive-reader")
    reads = ("extractive-reader",)
    model_class = ExtractiveReader


class SpanReaderKind(PointingReaderKind[SpanReader]):
    """See ModelKind."""

    name = "span-reader"
    about = "an encoder that points to the answer, first and last token judged together (ORQA)"
    starts_from = ("dual-encoder", "masked-lm", "span-reader")
    reads = ("span-reader",)
    model_class = SpanReader


EXTRACTIVE_READER, SPAN_READER = ExtractiveReaderKind(), SpanReaderKind()
