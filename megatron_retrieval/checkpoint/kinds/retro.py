"""RETROs: a causal language model's checkpoint, and what reads neighbours; a frozen language model is referred to.
Readers that started from one hold all of their weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from megatron_retrieval.checkpoint.kinds.causal_lm import CAUSAL_LM
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription, ModelKind
from megatron_retrieval.checkpoint.kinds.reader import ReaderModelKind, layout_if_saved
from megatron_retrieval.checkpoint.store.merged import MergedWeights
from megatron_retrieval.checkpoint.store.reader import fill_parameters
from megatron_retrieval.data.layouts.retro import RetroFormatConfig
from megatron_retrieval.models.causal_config import CausalShape
from megatron_retrieval.models.retro import Retro, RetroConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer


class RetroKind(ModelKind[RetroConfig, None, Retro]):
    """See ModelKind."""

    name = "retro"
    about = "a causal language model that reads the neighbours of its chunks"
    starts_from = (CAUSAL_LM.name, "retro")
    shape_class, model_class, vocabulary_name = RetroConfig, Retro, ByteBpeTokenizer.kind

    def shape_from(self, source: AnyDescription, new: RetroConfig) -> RetroConfig:
        """The shape of a model that starts from `source`.

        Args:
            new: gives what a causal language model has no settings for.
        """
        if isinstance(source.shape, RetroConfig):
            return source.shape
        own = {field.name: getattr(source.shape, field.name) for field in dataclasses.fields(CausalShape)}
        return dataclasses.replace(new, **own)

    def start(self, model: Retro, source: AnyDescription, topology: ProcessTopology) -> None:
        """See ModelKind."""
        reader, parameters = MergedWeights(source.folder, source.manifest), dict(model.named_parameters())
        if source.kind.name == CAUSAL_LM.name:
            parameters = {name: parameters[name] for name in model.base_names()}
        fill_parameters(parameters, reader.names(), reader.full, topology, source=str(source.folder))
        if source.kind.name == CAUSAL_LM.name:
            model.begin_to_read()


class RetroReaderKind(ReaderModelKind[RetroConfig, RetroFormatConfig | None, Retro]):
    """See ModelKind; the checkpoint of a RETRO has no layout of its own."""

    name = "retro-reader"
    about = "a RETRO that writes the answer behind a question, whose neighbours are passages"
    starts_from = ("retro", "retro-reader")
    reads = ("retro", "retro-reader")
    shape_class, model_class, vocabulary_name = RetroConfig, Retro, ByteBpeTokenizer.kind

    def read_layout(self, settings: Mapping[str, Any]) -> RetroFormatConfig | None:
        """See ModelKind."""
        return layout_if_saved(RetroFormatConfig, settings)

    def shape_from(self, source: AnyDescription) -> RetroConfig:
        """See ReaderModelKind; activations are dropped in the decoder alone (section C.4)."""
        no_dropout = {"retro_encoder_hidden_dropout": 0.0, "retro_encoder_attention_dropout": 0.0}
        shape: RetroConfig = dataclasses.replace(source.shape, **no_dropout)
        return shape


RETRO, RETRO_READER = RetroKind(), RetroReaderKind()
