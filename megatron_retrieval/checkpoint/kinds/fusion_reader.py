"""Fusion readers: the weights of an encoder-decoder, with its vocabulary and the layout of what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from megatron_retrieval.checkpoint.kinds.architectures import ARCHITECTURES, OverEncoder
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.kinds.reader import ReaderModelKind
from megatron_retrieval.config.parser import from_flat_dict, to_flat_dict
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.vocabulary import SpecialIds


class FusionReaderKind(ReaderModelKind[Any, FusionFormatConfig | None, Any]):
    """See ModelKind. The shape is that of an architecture, the model an `EncoderDecoder`; a T5's checkpoint has no
    layout of its own."""

    name = "fusion-reader"
    about = "an encoder-decoder that writes the answer from all passages"
    starts_from = ("t5", "fusion-reader", "dual-encoder", "masked-lm", "extractive-reader")
    reads = ("t5", "fusion-reader")

    def read_shape(self, settings: Mapping[str, Any]) -> Any:
        """See ModelKind."""
        return from_flat_dict(ARCHITECTURES.saved(settings).shape, settings)

    def read_layout(self, settings: Mapping[str, Any]) -> FusionFormatConfig | None:
        """See ModelKind; None where it has not been trained as a reader."""
        has_layout = to_flat_dict(FusionFormatConfig()).keys() <= settings.keys()
        return from_flat_dict(FusionFormatConfig, settings) if has_layout else None

    def vocabulary(self, shape: Any) -> str:
        """See ModelKind."""
        return ARCHITECTURES.of(shape).vocabulary

    def marks(self, shape: Any) -> dict[str, Any]:
        """See ModelKind."""
        return {ARCHITECTURES.key: ARCHITECTURES.of(shape).name}

    def build(
        self,
        shape: Any,
        special: SpecialIds,
        topology: ProcessTopology,
        dtype: torch.dtype = torch.float32,
        *,
        seed: int = 0,
    ) -> Any:
        """See ModelKind."""
        return ARCHITECTURES.of(shape).build(shape, special, topology, dtype, seed=seed)

    def shape_from(self, source: AnyDescription) -> Any:
        """The shape of a reader that starts there."""
        return source.shape if source.kind.name in self.reads else _over(source).shape(source.encoder.shape)

    def start(self, model: Any, source: AnyDescription, topology: ProcessTopology) -> None:
        """See ModelKind: an encoder becomes encoder and decoder."""
        if source.kind.name in self.reads:
            super().start(model, source, topology)
        else:
            _over(source).start(model, source, topology)


FUSION_READER = FusionReaderKind()


def _over(source: AnyDescription) -> OverEncoder:
    """How an encoder-decoder starts from the encoder of a checkpoint."""
    encoder = source.encoder
    for architecture in ARCHITECTURES.values():
        if (over := architecture.over_encoder) is not None and over.encoder is type(encoder.shape):
            return over
    raise CheckpointError(f"{source.folder}: no architecture of encoder-decoders starts from {encoder.title}.")
