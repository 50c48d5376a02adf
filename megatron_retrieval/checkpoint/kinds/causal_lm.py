"""Causal language models, and readers that started from one: shape and vocabulary travel with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription, EncoderPart, ModelKind
from megatron_retrieval.checkpoint.kinds.reader import ReaderModelKind, layout_if_saved
from megatron_retrieval.data.layouts.prompt import PromptFormatConfig
from megatron_retrieval.models.causal_lm import CausalConfig, CausalLM
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer


def _stack_of(kind: str, shape: CausalConfig) -> EncoderPart:
    return EncoderPart(shape, "stack.", f"the {kind}'s stack")


class CausalLMKind(ModelKind[CausalConfig, None, CausalLM]):
    """See ModelKind."""

    name = "causal-lm"
    about = "a causal language model, which reads as a causal reader without further training"
    starts_from = ("causal-lm",)
    shape_class, model_class, vocabulary_name = CausalConfig, CausalLM, ByteBpeTokenizer.kind

    def encoder_part(self, shape: CausalConfig) -> EncoderPart:
        """See ModelKind."""
        return _stack_of(self.name, shape)


class CausalReaderKind(ReaderModelKind[CausalConfig, PromptFormatConfig | None, CausalLM]):
    """See ModelKind; a language model's checkpoint has no layout of its own."""

    name = "causal-reader"
    about = "a causal language model that writes the answer behind a prompt with passages and question"
    starts_from = ("causal-lm", "causal-reader")
    reads = ("causal-lm", "causal-reader")
    shape_class, model_class, vocabulary_name = CausalConfig, CausalLM, ByteBpeTokenizer.kind

    def read_layout(self, settings: Mapping[str, Any]) -> PromptFormatConfig | None:
        """See ModelKind."""
        return layout_if_saved(PromptFormatConfig, settings)

    def encoder_part(self, shape: CausalConfig) -> EncoderPart:
        """See ModelKind."""
        return _stack_of(self.name, shape)

    def shape_from(self, source: AnyDescription) -> CausalConfig:
        """See ReaderModelKind."""
        shape: CausalConfig = source.shape
        return shape


CAUSAL_LM, CAUSAL_READER = CausalLMKind(), CausalReaderKind()
