"""Hugging Face BERT's weights and configuration under this project's names, and back: two tables, read both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.files import check_settings
from megatron_retrieval.checkpoint.huggingface.weight_table import WeightEntry
from megatron_retrieval.models.bert import BertConfig, PostNormConfig, UnigramBertConfig

# ours -> theirs, for the weight and the bias of each; {} is the number of a layer
EMBEDDINGS = {
    "embedding.word_embeddings": "embeddings.word_embeddings",
    "embedding.position_embeddings": "embeddings.position_embeddings",
}
SEGMENTS = {"embedding.tokentype_embeddings": "embeddings.token_type_embeddings"}
EMBEDDING_NORM = {"embedding.norm": "embeddings.LayerNorm"}
LAYER = {
    "encoder.layers.{}.self_attention.linear_proj": "encoder.layer.{}.attention.output.dense",
    "encoder.layers.{}.input_layernorm": "encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layers.{}.mlp.linear_fc1": "encoder.layer.{}.intermediate.dense",
    "encoder.layers.{}.mlp.linear_fc2": "encoder.layer.{}.output.dense",
    "encoder.layers.{}.pre_mlp_layernorm": "encoder.layer.{}.output.LayerNorm",
}
# ours holds the three interleaved by head: [heads, 3, head width], so that a cut over ranks keeps heads whole
QKV = "encoder.layers.{}.self_attention.linear_qkv"
QKV_PARTS = tuple(f"encoder.layer.{{}}.attention.self.{name}" for name in ("query", "key", "value"))

# names of older releases
RENAMED_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# what a BERT checkpoint may hold beyond its encoder: buffers, and heads of its pretraining tasks
IGNORED_PREFIXES = ("embeddings.position_ids", "embeddings.token_type_ids", "pooler.", "cls.")

CONFIG_KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "num_tokentypes": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layernorm_epsilon": "layer_norm_eps",
    "init_method_std": "initializer_range",
}
#: what transformers takes where a `config.json` says nothing, as those of early releases do
DEFAULTS = {
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
}
# settings with which BERT computes something else than `BertEncoder` does
REQUIRED_SETTINGS = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


def bert_config_from_hf(settings: Mapping[str, Any], source: str | Path) -> BertConfig:
    """Read the encoder's shape from the contents of a `config.json`.

    Raises:
        CheckpointError: a setting is missing, or the model is not the BERT that this project computes.
    """
    settings = {**DEFAULTS, **settings}
    check_settings(settings, source, "a BERT encoder", required=REQUIRED_SETTINGS, needed=CONFIG_KEYS.values())
    return BertConfig(**{ours: settings[theirs] for ours, theirs in CONFIG_KEYS.items()})


def bert_config_to_hf(config: BertConfig) -> dict[str, Any]:
    """The settings of a `config.json` that describe the encoder."""
    settings = {theirs: getattr(config, ours) for ours, theirs in CONFIG_KEYS.items()}
    names = {"model_type": "bert", "architectures": ["BertModel"]}
    return {**settings, **REQUIRED_SETTINGS, **names, "intermediate_size": config.ffn_size, "pad_token_id": 0}


def unigram_bert_config_from_hf(settings: Mapping[str, Any], source: str | Path) -> UnigramBertConfig:
    """See `bert_config_from_hf`."""
    return UnigramBertConfig(**vars(bert_config_from_hf(settings, source)))


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that today's releases give them."""
    named = {}
    for name, tensor in state.items():
        for old, new in RENAMED_ENDINGS.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        named[name] = tensor
    return named


def post_norm_table(
    config: PostNormConfig, embeddings: Mapping[str, str], layer: Mapping[str, str], qkv_parts: tuple[str, ...]
) -> Iterator[WeightEntry]:
    """The weights of `BertEncoder` and what they are called elsewhere.

    Args:
        embeddings: our tables -> theirs.
        layer: our modules of a layer -> theirs, by its number.
        qkv_parts: their queries, keys and values of a layer.
    """
    for ours, theirs in embeddings.items():
        yield WeightEntry(f"{ours}.weight", (f"{theirs}.weight",))
    for kind in ("weight", "bias"):
        for ours, theirs in EMBEDDING_NORM.items():
            yield WeightEntry(f"{ours}.{kind}", (f"{theirs}.{kind}",))
        for number in range(config.num_layers):
            yield WeightEntry(
                f"{QKV}.{kind}".format(number),
                tuple(f"{part}.{kind}".format(number) for part in qkv_parts),
                config.num_attention_heads,
            )
            for ours, theirs in layer.items():
                yield WeightEntry(f"{ours}.{kind}".format(number), (f"{theirs}.{kind}".format(number),))


def bert_table(config: BertConfig) -> Iterator[WeightEntry]:
    """The weights of `BertEncoder`, and those of Hugging Face's `BertModel`."""
    return post_norm_table(config, EMBEDDINGS | SEGMENTS, LAYER, QKV_PARTS)


def without_heads(state: Mapping[str, Tensor], prefix: str, ignored: tuple[str, ...]) -> dict[str, Tensor]:
    """The weights of an encoder, or of a model that holds one under `prefix`, without those of heads and buffers."""
    named = {name.removeprefix(prefix): tensor for name, tensor in current_names(state).items()}
    return {name: tensor for name, tensor in named.items() if not name.startswith(ignored)}


def encoder_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a `BertModel`, or of a model that holds one under the prefix `bert.`, without heads."""
    return without_heads(state, "bert.", IGNORED_PREFIXES)
