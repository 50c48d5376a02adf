"""Dual encoders: shape, text layout and vocabulary travel with the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES, family_marks
from megatron_retrieval.checkpoint.kinds.kind import (
    AnyDescription,
    Description,
    EncoderPart,
    Loaded,
    ModelKind,
    fill_parts,
)
from megatron_retrieval.config.parser import from_flat_dict, to_flat_dict
from megatron_retrieval.data.layouts.sequences import TextFormatConfig, read_text_format, without_empty_prefixes
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import CheckpointError, MismatchError
from megatron_retrieval.models.adapters import deciding_parameters
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.parallel.precision import dtype_of
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.utils.logging import get_logger

log = get_logger("checkpoint")

#: what a manifest does not say of projections without a norm: such an encoder is named as it was before there were any
_PLAIN = {"biencoder-projection-norm": False, "biencoder-projection-dropout": 0.0}

Texts = TypeVar("Texts", bound=TextFormatConfig)
DualEncoderDescription = Description[DualEncoderConfig, TextFormatConfig, DualEncoder]
LoadedDualEncoder = Loaded[DualEncoderConfig, TextFormatConfig, DualEncoder]


class DualEncoderKind(ModelKind[DualEncoderConfig, TextFormatConfig, DualEncoder]):
    """See ModelKind; dropout and recompute do not change what a dual encoder computes, but are the defaults when it is
    trained further."""

    name = "dual-encoder"
    about = "questions and passages to vectors of one space"
    starts_from = ("dual-encoder", "masked-lm", "causal-lm")
    shape_class, layout_class, model_class = DualEncoderConfig, TextFormatConfig, DualEncoder

    def read_shape(self, settings: Mapping[str, Any]) -> DualEncoderConfig:
        """See ModelKind."""
        return from_flat_dict(
            DualEncoderConfig, {**_PLAIN, **settings}, {EncoderShape: ENCODER_FAMILIES.saved(settings).shape}
        )

    def read_layout(self, settings: Mapping[str, Any]) -> TextFormatConfig:
        """See ModelKind."""
        return read_text_format(settings)

    def config(self, shape: DualEncoderConfig, vocabulary: Vocabulary, *further: Any) -> dict[str, Any]:
        """See ModelKind."""
        settings = without_empty_prefixes(super().config(shape, vocabulary, *further))
        return {name: value for name, value in settings.items() if name not in _PLAIN or value != _PLAIN[name]}

    def vocabulary(self, shape: DualEncoderConfig) -> str:
        """See ModelKind."""
        return ENCODER_FAMILIES.of(shape.encoder).vocabulary

    def marks(self, shape: DualEncoderConfig) -> dict[str, Any]:
        """See ModelKind."""
        return family_marks(shape.encoder)

    def encoder_part(self, shape: DualEncoderConfig) -> EncoderPart:
        """The only tower's encoder, or the passages'."""
        tower = "shared" if shape.biencoder_shared_query_context_model else "passage"
        return EncoderPart(shape.encoder, f"towers.{tower}.bert.", f"the {tower} tower's encoder")

    def shape_from(self, source: AnyDescription, default: DualEncoderConfig) -> DualEncoderConfig:
        """The shape of a dual encoder that starts there; what the checkpoint does not say is as in `default`."""
        if source.kind is self:
            shape: DualEncoderConfig = source.shape
            return shape
        return dataclasses.replace(default, encoder=source.encoder.shape)

    def layout_from(self, source: AnyDescription, default: TextFormatConfig) -> TextFormatConfig:
        """Its text layout, or else `default` with sequences no longer than the encoder's positions."""
        if source.kind is self:
            layout: TextFormatConfig = source.layout
            return layout
        return text_format_within(default, source.encoder.shape)

    def start(self, model: DualEncoder, source: AnyDescription, topology: ProcessTopology) -> None:
        """See ModelKind: an encoder goes into every tower, one shared tower may become two."""
        fill_parts(self._parts(model, source), source, topology)

    def _parts(self, model: DualEncoder, source: AnyDescription) -> Iterator[tuple[nn.Module, str]]:
        towers = dict(model.towers.named_children())
        if source.kind is not self:
            log.info("%s: %s goes into every tower; a projection is new.", source.folder, source.encoder.title)
            for tower in towers.values():
                yield tower.get_submodule("bert"), source.encoder.prefix
        elif source.shape.biencoder_shared_query_context_model:
            for tower in towers.values():
                yield tower, "towers.shared."
        elif "shared" in towers:
            raise CheckpointError(
                f"{source.folder}: holds one encoder for questions and one for passages, which do not become one; "
                "leave out --biencoder-shared-query-context-model."
            )
        else:
            for name, tower in towers.items():
                yield tower, f"towers.{name}."


DUAL_ENCODER = DualEncoderKind()


def load_encoder_for(
    evidence: EvidenceStore, checkpoint: Path, topology: ProcessTopology, dtype: torch.dtype
) -> LoadedDualEncoder:
    """A checkpoint's encoder in evaluation mode, to encode passages of `evidence`.

    Raises:
        CheckpointError: no dual encoder there.
        MismatchError: the evidence was tokenized with another vocabulary than the checkpoint's.
    """
    evidence.require_vocabulary(DUAL_ENCODER.describe(checkpoint).vocabulary(), f"the checkpoint {checkpoint}")
    return load_encoder(checkpoint, topology, dtype)


def load_encoder(checkpoint: Path, topology: ProcessTopology, dtype: torch.dtype) -> LoadedDualEncoder:
    """A checkpoint's encoder in evaluation mode; raises CheckpointError where there is no dual encoder."""
    description = DUAL_ENCODER.describe(checkpoint)
    return Loaded(description.load(topology, dtype), description)


def embedding_encoder(
    encoder: LoadedDualEncoder, embedded_by: Path | None, topology: ProcessTopology
) -> DualEncoderDescription:
    """What names the embeddings that an encoder searches: itself, or a checkpoint that encodes passages as it does.

    Raises:
        CheckpointError: no dual encoder there.
        MismatchError: it encodes passages otherwise.
    """
    if embedded_by is None:
        return encoder.description
    made_by = DUAL_ENCODER.describe(embedded_by)
    other = made_by.load(topology, dtype_of(encoder.model))
    own, theirs = (deciding_parameters(model.tower_of("passage")) for model in (encoder.model, other))
    is_same = own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    if not is_same or _passage_settings(encoder.description) != _passage_settings(made_by):
        raise MismatchError(
            f"--embedded-by {embedded_by} encodes passages otherwise than {encoder.description.folder}: embed the "
            "evidence with the retriever."
        )
    return made_by


def _passage_settings(description: DualEncoderDescription) -> dict[str, Any]:
    """What a passage's vector depends on beside weights."""
    shape, layout = description.shape, to_flat_dict(description.layout)
    settings = {name: value for name, value in layout.items() if not name.startswith("query")}
    return {**settings, "pooling": shape.pooling, "normalize": shape.normalize_embeddings}


def text_format_within(text_format: Texts, encoder: EncoderShape) -> Texts:
    """The layout with sequences no longer than the encoder's positions."""
    if (longest := encoder.max_positions) is None:
        return text_format
    return dataclasses.replace(
        text_format,
        query_seq_length=min(text_format.query_seq_length, longest),
        retriever_seq_length=min(text_format.retriever_seq_length, longest),
    )
