"""Hugging Face BERT's weights and configuration under this project's names, and back: two tables, read both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.bert import BertConfig

# ours -> theirs, for the weight and the bias of each; {} is the number of a layer
EMBEDDINGS = {
    "embedding.word_embeddings": "embeddings.word_embeddings",
    "embedding.position_embeddings": "embeddings.position_embeddings",
    "embedding.tokentype_embeddings": "embeddings.token_type_embeddings",
}
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
# settings with which BERT computes something else than `BertEncoder` does
REQUIRED_SETTINGS = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


@dataclass(frozen=True)
class _Entry:
    """One of our tensors and the one, or the three interleaved ones, of Hugging Face that it is made of."""

    ours: str
    theirs: tuple[str, ...]


def import_bert(state: Mapping[str, Tensor], config: BertConfig, source: str | Path) -> dict[str, Tensor]:
    """Full fp32 tensors under `BertEncoder`'s names.

    Args:
        state: of Hugging Face's `BertModel`, or of a model that holds one under the prefix `bert.`.
        source: where it comes from, for messages.

    Raises:
        CheckpointError: weights are missing, unknown, or not of the configured shape.
    """
    state = _encoder_names(state)
    entries = list(_table(config))
    known = {name for entry in entries for name in entry.theirs}
    if missing := sorted(known - state.keys()):
        raise CheckpointError(f"{source}: {len(missing)} weights are missing, among them {_some(missing)}.")
    if unknown := sorted(state.keys() - known):
        raise CheckpointError(f"{source}: {len(unknown)} weights have no place in BERT, among them {_some(unknown)}.")
    try:
        return {entry.ours: _join([state[name].float() for name in entry.theirs], config) for entry in entries}
    except RuntimeError as error:
        raise CheckpointError(f"{source}: query, key and value do not fit the configuration: {error}") from error


def export_bert(full: Mapping[str, Tensor], config: BertConfig) -> dict[str, Tensor]:
    """The inverse of `import_bert`: tensors under the names of Hugging Face's `BertModel`."""
    state: dict[str, Tensor] = {}
    for entry in _table(config):
        state.update(zip(entry.theirs, _split(full[entry.ours], len(entry.theirs), config), strict=True))
    return state


def bert_config_from_hf(settings: Mapping[str, Any], source: str | Path) -> BertConfig:
    """Read the encoder's shape from the contents of a `config.json`.

    Raises:
        CheckpointError: a setting is missing, or the model is not the BERT that this project computes.
    """
    for key, value in REQUIRED_SETTINGS.items():
        if settings.get(key, value) != value:
            raise CheckpointError(f"{source}: {key} is {settings[key]!r}; only {value!r} can be imported.")
    if missing := [theirs for theirs in CONFIG_KEYS.values() if theirs not in settings]:
        raise CheckpointError(f"{source}: no configuration of a BERT encoder; {_some(missing)} is missing.")
    return BertConfig(**{ours: settings[theirs] for ours, theirs in CONFIG_KEYS.items()})


def bert_config_to_hf(config: BertConfig) -> dict[str, Any]:
    """The settings of a `config.json` that describe the encoder."""
    settings = {theirs: getattr(config, ours) for ours, theirs in CONFIG_KEYS.items()}
    return {**settings, **REQUIRED_SETTINGS, "intermediate_size": config.ffn_size, "pad_token_id": 0}


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that today's releases give them."""
    named = {}
    for name, tensor in state.items():
        for old, new in RENAMED_ENDINGS.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        named[name] = tensor
    return named


def _table(config: BertConfig) -> Iterator[_Entry]:
    for ours, theirs in EMBEDDINGS.items():
        yield _Entry(f"{ours}.weight", (f"{theirs}.weight",))
    for kind in ("weight", "bias"):
        for ours, theirs in EMBEDDING_NORM.items():
            yield _Entry(f"{ours}.{kind}", (f"{theirs}.{kind}",))
        for layer in range(config.num_layers):
            yield _Entry(f"{QKV}.{kind}".format(layer), tuple(f"{part}.{kind}".format(layer) for part in QKV_PARTS))
            for ours, theirs in LAYER.items():
                yield _Entry(f"{ours}.{kind}".format(layer), (f"{theirs}.{kind}".format(layer),))


def _encoder_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {name.removeprefix("bert."): tensor for name, tensor in current_names(state).items()}
    return {name: tensor for name, tensor in named.items() if not name.startswith(IGNORED_PREFIXES)}


def _join(parts: list[Tensor], config: BertConfig) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    by_head = [part.unflatten(0, (config.num_attention_heads, -1)) for part in parts]
    return torch.stack(by_head, 1).flatten(0, 2)


def _split(tensor: Tensor, num_parts: int, config: BertConfig) -> list[Tensor]:
    if num_parts == 1:
        return [tensor]
    by_head = tensor.unflatten(0, (config.num_attention_heads, num_parts, -1))
    return [part.flatten(0, 1).contiguous() for part in by_head.unbind(1)]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3])
