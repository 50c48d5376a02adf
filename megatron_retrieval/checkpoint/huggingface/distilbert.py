"""Hugging Face DistilBERT's weights and configuration under this project's names, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.bert import EMBEDDINGS, post_norm_table, without_heads
from megatron_retrieval.checkpoint.huggingface.files import check_settings
from megatron_retrieval.checkpoint.huggingface.weight_table import WeightEntry
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.distilbert import DistilBertConfig

CONFIG_KEYS = {
    "num_layers": "n_layers",
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "ffn_hidden_size": "hidden_dim",
    "max_position_embeddings": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "init_method_std": "initializer_range",
}
#: sinusoidal positions are stored as learned ones are, but must not be trained
REQUIRED_SETTINGS = {"activation": "gelu", "sinusoidal_pos_embds": False}
NORM_EPSILON = 1e-12
LAYER = {
    "encoder.layers.{}.self_attention.linear_proj": "transformer.layer.{}.attention.out_lin",
    "encoder.layers.{}.input_layernorm": "transformer.layer.{}.sa_layer_norm",
    "encoder.layers.{}.mlp.linear_fc1": "transformer.layer.{}.ffn.lin1",
    "encoder.layers.{}.mlp.linear_fc2": "transformer.layer.{}.ffn.lin2",
    "encoder.layers.{}.pre_mlp_layernorm": "transformer.layer.{}.output_layer_norm",
}
QKV_PARTS = tuple(f"transformer.layer.{{}}.attention.{name}_lin" for name in "qkv")
#: buffers, and heads of its pretraining
IGNORED_PREFIXES = ("embeddings.position_ids", "vocab_")


def distilbert_config_from_hf(settings: Mapping[str, Any], source: str | Path) -> DistilBertConfig:
    """Read the encoder's shape from the contents of a `config.json`.

    Raises:
        CheckpointError: a setting is missing, or the model is not the DistilBERT that this project computes.
    """
    check_settings(settings, source, "a DistilBERT encoder", required=REQUIRED_SETTINGS, needed=CONFIG_KEYS.values())
    return DistilBertConfig(**{ours: settings[theirs] for ours, theirs in CONFIG_KEYS.items()})


def distilbert_config_to_hf(config: DistilBertConfig) -> dict[str, Any]:
    """The settings of a `config.json` that describe the encoder.

    Raises:
        CheckpointError: one of them has no place there.
    """
    if config.layernorm_epsilon != NORM_EPSILON:
        raise CheckpointError(f"DistilBERT has the layer norm epsilon {NORM_EPSILON}, not {config.layernorm_epsilon}.")
    settings = {theirs: getattr(config, ours) for ours, theirs in CONFIG_KEYS.items()}
    names = {"model_type": "distilbert", "architectures": ["DistilBertModel"]}
    return {**settings, **REQUIRED_SETTINGS, **names, "hidden_dim": config.ffn_size, "pad_token_id": 0}


def distilbert_table(config: DistilBertConfig) -> Iterator[WeightEntry]:
    """The weights of `BertEncoder` without segments, and those of Hugging Face's `DistilBertModel`."""
    return post_norm_table(config, EMBEDDINGS, LAYER, QKV_PARTS)


def encoder_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a `DistilBertModel`, or of a model that holds one under `distilbert.`, without heads."""
    return without_heads(state, "distilbert.", IGNORED_PREFIXES)
