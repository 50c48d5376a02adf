"""The families of encoders: what manifests call each, its shape and its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface import bert, causal, distilbert, modernbert, mpnet, roberta
from megatron_retrieval.checkpoint.huggingface.weight_table import WeightEntry
from megatron_retrieval.checkpoint.kinds.family_registry import Families
from megatron_retrieval.models.bert import BertConfig, UnigramBertConfig
from megatron_retrieval.models.causal_lm import CausalConfig
from megatron_retrieval.models.distilbert import DistilBertConfig
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.models.modernbert import ModernBertConfig
from megatron_retrieval.models.mpnet import MpnetConfig
from megatron_retrieval.models.roberta import RobertaConfig, XlmRobertaConfig


@dataclass(frozen=True, kw_only=True)
class EncoderFamily:
    """A family of encoders, here and in Hugging Face's folders.

    Attributes:
        name: in manifests and messages.
        about: what it is, in one clause.
        shape: its configuration, which builds it.
        vocabulary: name of its kind of vocabulary, see `VOCABULARIES`.
        model_type: what a config.json calls it.
        from_huggingface: (contents of a config.json, where they come from) to the shape. Raises CheckpointError where a
            setting is missing, or the model is not what this family computes.
        to_huggingface: the shape to the contents of a config.json, with model_type and architectures.
        table: of a shape, our weights and what they are called there.
        other_model_types: what else a config.json may call it.
        prefix: what the names of its weights begin with in a model with heads; default: the model_type and a dot.
        current_names: the weights of a folder under the names that `table` has, without what belongs to no encoder.
    """

    name: str
    about: str
    shape: type[EncoderShape]
    vocabulary: str
    model_type: str
    from_huggingface: Callable[[Mapping[str, Any], Path], EncoderShape]
    to_huggingface: Callable[[Any], dict[str, Any]]
    table: Callable[[Any], Iterable[WeightEntry]]
    current_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    other_model_types: tuple[str, ...] = ()
    prefix: str | None = None

    @property
    def model_types(self) -> tuple[str, ...]:
        """All that a config.json may call it."""
        return self.model_type, *self.other_model_types

    @property
    def inner_prefix(self) -> str:
        """See `prefix`."""
        return f"{self.model_type}." if self.prefix is None else self.prefix


ENCODER_FAMILIES: Families[EncoderFamily] = Families("family of encoders", key="encoder-family", default="bert")
BERT = ENCODER_FAMILIES.add(
    EncoderFamily(
        name="bert",
        about="BERT: layer norm after each residual sum, absolute positions",
        shape=BertConfig,
        vocabulary="WordPiece",
        model_type="bert",
        from_huggingface=bert.bert_config_from_hf,
        to_huggingface=bert.bert_config_to_hf,
        table=bert.bert_table,
        current_names=bert.encoder_names,
    )
)
UNIGRAM_BERT = ENCODER_FAMILIES.add(
    replace(
        BERT,
        name="bert-unigram",
        about="BERT with XLM-R's vocabulary, as small multilingual encoders are",
        shape=UnigramBertConfig,
        vocabulary="unigram",
        from_huggingface=bert.unigram_bert_config_from_hf,
    )
)
MPNET = ENCODER_FAMILIES.add(
    EncoderFamily(
        name="mpnet",
        about="MPNet: BERT's layers, positions also relative, no segments",
        shape=MpnetConfig,
        vocabulary="WordPiece",
        model_type="mpnet",
        from_huggingface=mpnet.mpnet_config_from_hf,
        to_huggingface=mpnet.mpnet_config_to_hf,
        table=mpnet.mpnet_table,
        current_names=mpnet.encoder_names,
    )
)
DISTILBERT = ENCODER_FAMILIES.add(
    EncoderFamily(
        name="distilbert",
        about="DistilBERT: BERT's layers, no segments",
        shape=DistilBertConfig,
        vocabulary="WordPiece",
        model_type="distilbert",
        from_huggingface=distilbert.distilbert_config_from_hf,
        to_huggingface=distilbert.distilbert_config_to_hf,
        table=distilbert.distilbert_table,
        current_names=distilbert.encoder_names,
    )
)
ROBERTA = ENCODER_FAMILIES.add(
    EncoderFamily(
        name="roberta",
        about="RoBERTa: BERT's layers, byte-level BPE, no segments",
        shape=RobertaConfig,
        vocabulary="byte-level BPE",
        model_type="roberta",
        from_huggingface=roberta.roberta_config_from_hf,
        to_huggingface=roberta.roberta_config_to_hf,
        table=roberta.roberta_table,
        current_names=roberta.encoder_names,
    )
)
XLM_ROBERTA = ENCODER_FAMILIES.add(
    EncoderFamily(
        name="xlm-roberta",
        about="XLM-R: RoBERTa with a unigram vocabulary of many languages",
        shape=XlmRobertaConfig,
        vocabulary="unigram",
        model_type="xlm-roberta",
        from_huggingface=roberta.xlm_roberta_config_from_hf,
        to_huggingface=roberta.xlm_roberta_config_to_hf,
        table=roberta.roberta_table,
        current_names=roberta.encoder_names,
        prefix="roberta.",
    )
)
MODERNBERT = ENCODER_FAMILIES.add(
    EncoderFamily(
        name="modernbert",
        about="ModernBERT: norms before the parts, rotary positions, windows, byte-level BPE",
        shape=ModernBertConfig,
        vocabulary="byte-level BPE",
        model_type="modernbert",
        from_huggingface=modernbert.modernbert_config_from_hf,
        to_huggingface=modernbert.modernbert_config_to_hf,
        table=modernbert.modernbert_table,
        current_names=modernbert.encoder_names,
        prefix=modernbert.PREFIX,
    )
)
CAUSAL = ENCODER_FAMILIES.add(
    EncoderFamily(
        name="causal",
        about="Llama, Mistral, Qwen 2 and 3: a token sees those before it",
        shape=CausalConfig,
        vocabulary="byte-level BPE",
        model_type="llama",
        other_model_types=("mistral", "qwen2", "qwen3"),
        from_huggingface=causal.causal_config_from_hf,
        to_huggingface=causal.causal_config_to_hf,
        table=causal.stack_table,
        current_names=causal.stack_names,
        prefix=causal.PREFIX,
    )
)


def family_marks(shape: EncoderShape) -> dict[str, Any]:
    """What a manifest must keep so that `ENCODER_FAMILIES` finds the family again; of a BERT nothing, as ever."""
    family = ENCODER_FAMILIES.of(shape)
    return {} if family is BERT else {ENCODER_FAMILIES.key: family.name}
