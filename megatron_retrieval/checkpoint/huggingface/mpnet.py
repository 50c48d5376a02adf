"""Hugging Face MPNet's weights and configuration under this project's names, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.bert import CONFIG_KEYS as BERT_KEYS
from megatron_retrieval.checkpoint.huggingface.bert import EMBEDDINGS, LAYER, post_norm_table, without_heads
from megatron_retrieval.checkpoint.huggingface.files import check_settings
from megatron_retrieval.checkpoint.huggingface.weight_table import WeightEntry
from megatron_retrieval.models.mpnet import NUM_BUCKETS, MpnetConfig

CONFIG_KEYS = {ours: theirs for ours, theirs in BERT_KEYS.items() if ours != "num_tokentypes"}
REQUIRED_SETTINGS = {"hidden_act": "gelu", "pad_token_id": 1, "relative_attention_num_buckets": NUM_BUCKETS}
ATTENTION = {
    "encoder.layers.{}.self_attention.linear_proj": "encoder.layer.{}.attention.attn.o",
    "encoder.layers.{}.input_layernorm": "encoder.layer.{}.attention.LayerNorm",
}
QKV_PARTS = tuple(f"encoder.layer.{{}}.attention.attn.{name}" for name in "qkv")
RELATIVE_BIAS = WeightEntry("relative_bias.weight", ("encoder.relative_attention_bias.weight",))
#: buffers, and heads of its pretraining
IGNORED_PREFIXES = ("embeddings.position_ids", "pooler.", "lm_head.")


def mpnet_config_from_hf(settings: Mapping[str, Any], source: str | Path) -> MpnetConfig:
    """Read the encoder's shape from the contents of a `config.json`.

    Raises:
        CheckpointError: a setting is missing, or the model is not the MPNet that this project computes.
    """
    check_settings(settings, source, "an MPNet encoder", required=REQUIRED_SETTINGS, needed=CONFIG_KEYS.values())
    return MpnetConfig(**{ours: settings[theirs] for ours, theirs in CONFIG_KEYS.items()})


def mpnet_config_to_hf(config: MpnetConfig) -> dict[str, Any]:
    """The settings of a `config.json` that describe the encoder."""
    settings = {theirs: getattr(config, ours) for ours, theirs in CONFIG_KEYS.items()}
    ids = {"bos_token_id": 0, "eos_token_id": 2}
    names = {"model_type": "mpnet", "architectures": ["MPNetModel"]}
    return {**settings, **REQUIRED_SETTINGS, **ids, **names, "intermediate_size": config.ffn_size}


def mpnet_table(config: MpnetConfig) -> Iterator[WeightEntry]:
    """The weights of `MpnetEncoder`, and those of Hugging Face's `MPNetModel`."""
    yield from post_norm_table(config, EMBEDDINGS, LAYER | ATTENTION, QKV_PARTS)
    yield RELATIVE_BIAS


def encoder_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an `MPNetModel`, or of a model that holds one under the prefix `mpnet.`, without heads."""
    return without_heads(state, "mpnet.", IGNORED_PREFIXES)
