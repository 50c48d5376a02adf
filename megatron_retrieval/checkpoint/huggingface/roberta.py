"""Hugging Face RoBERTa's weights and configuration under this project's names, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.bert import (
    CONFIG_KEYS as BERT_KEYS,
)
from megatron_retrieval.checkpoint.huggingface.bert import (
    DEFAULTS,
    EMBEDDINGS,
    IGNORED_PREFIXES,
    LAYER,
    QKV_PARTS,
    SEGMENTS,
    post_norm_table,
    without_heads,
)
from megatron_retrieval.checkpoint.huggingface.bert import REQUIRED_SETTINGS as BERT_SETTINGS
from megatron_retrieval.checkpoint.huggingface.files import check_settings
from megatron_retrieval.checkpoint.huggingface.weight_table import WeightEntry
from megatron_retrieval.models.roberta import FIRST_POSITION, RobertaConfig, XlmRobertaConfig

CONFIG_KEYS = {ours: theirs for ours, theirs in BERT_KEYS.items() if ours != "num_tokentypes"}
REQUIRED_SETTINGS = {**BERT_SETTINGS, "type_vocab_size": 1, "pad_token_id": FIRST_POSITION - 1}
#: heads of its pretraining, and of classifiers and readers made of it
HEADS = ("lm_head.", "classifier.", "qa_outputs.")


def roberta_config_from_hf(settings: Mapping[str, Any], source: str | Path) -> RobertaConfig:
    """Read the encoder's shape from the contents of a `config.json`.

    Raises:
        CheckpointError: a setting is missing, or the model is not the RoBERTa that this project computes.
    """
    settings = {**DEFAULTS, **settings}
    check_settings(settings, source, "a RoBERTa encoder", required=REQUIRED_SETTINGS, needed=CONFIG_KEYS.values())
    return RobertaConfig(**{ours: settings[theirs] for ours, theirs in CONFIG_KEYS.items()})


def roberta_config_to_hf(config: RobertaConfig) -> dict[str, Any]:
    """The settings of a `config.json` that describe the encoder."""
    settings = {theirs: getattr(config, ours) for ours, theirs in CONFIG_KEYS.items()}
    ids = {"bos_token_id": 0, "eos_token_id": 2}
    names = {"model_type": "roberta", "architectures": ["RobertaModel"]}
    return {**settings, **REQUIRED_SETTINGS, **ids, **names, "intermediate_size": config.ffn_size}


def xlm_roberta_config_from_hf(settings: Mapping[str, Any], source: str | Path) -> XlmRobertaConfig:
    """See `roberta_config_from_hf`."""
    return XlmRobertaConfig(**vars(roberta_config_from_hf(settings, source)))


def xlm_roberta_config_to_hf(config: XlmRobertaConfig) -> dict[str, Any]:
    """The settings of a `config.json` that describe the encoder."""
    return {**roberta_config_to_hf(config), "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}


def roberta_table(config: RobertaConfig) -> Iterator[WeightEntry]:
    """The weights of `BertEncoder` with one segment, and those of Hugging Face's `RobertaModel`."""
    return post_norm_table(config, EMBEDDINGS | SEGMENTS, LAYER, QKV_PARTS)


def encoder_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a `RobertaModel`, or of a model that holds one under the prefix `roberta.`, without heads."""
    return without_heads(state, "roberta.", (*IGNORED_PREFIXES, *HEADS))
