"""Hugging Face ModernBERT's weights and configuration under this project's names, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.files import check_settings
from megatron_retrieval.checkpoint.huggingface.weight_table import WeightEntry
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.modernbert import ModernBertConfig

PREFIX = "model."
CONFIG_KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "local_attention": "local_attention",
    "hidden_dropout": "embedding_dropout",
    "attention_dropout": "attention_dropout",
    "layernorm_epsilon": "norm_eps",
    "init_method_std": "initializer_range",
}
#: settings with which ModernBERT computes something else than `ModernBertEncoder` does
REQUIRED_SETTINGS = {"hidden_activation": "gelu", "norm_bias": False, "attention_bias": False, "mlp_bias": False}
#: settings with which the heads over it compute something else than ours
HEAD_SETTINGS = {"classifier_bias": False, "classifier_activation": "gelu", "decoder_bias": True}
#: base of the rotary positions -> the kind of layers, and what older releases call it
BASES = {
    "rotary_base": ("full_attention", "global_rope_theta"),
    "local_rotary_base": ("sliding_attention", "local_rope_theta"),
}
INTERVAL, TYPES, ROPE = "global_attn_every_n_layers", "layer_types", "rope_parameters"
# ours -> theirs; {} is the number of a layer
NORMS = {"embedding.norm": "embeddings.norm", "final_layernorm": "final_norm"}
LAYER = {
    "encoder.layers.{}.self_attention.linear_proj": "layers.{}.attn.Wo",
    "encoder.layers.{}.pre_mlp_layernorm": "layers.{}.mlp_norm",
    "encoder.layers.{}.mlp.linear_fc2": "layers.{}.mlp.Wo",
}
#: heads of its pretraining, and of classifiers made of it
IGNORED_PREFIXES = ("head.", "decoder.", "classifier.")


def modernbert_config_from_hf(settings: Mapping[str, Any], source: str | Path) -> ModernBertConfig:
    """Read the encoder's shape from the contents of a `config.json`.

    Raises:
        CheckpointError: a setting is missing, or the model is not the ModernBERT that this project computes.
    """
    check_settings(settings, source, "a ModernBERT encoder", required=REQUIRED_SETTINGS, needed=CONFIG_KEYS.values())
    values = {ours: settings[theirs] for ours, theirs in CONFIG_KEYS.items()}
    bases = {ours: _base(settings, *names, source) for ours, names in BASES.items()}
    values |= {ours: base for ours, base in bases.items() if base is not None}
    return ModernBertConfig(**values, global_attention_interval=_interval(settings, source))


def _base(settings: Mapping[str, Any], kind: str, former: str, source: str | Path) -> float | None:
    """Base of positions that are not scaled; None: the settings leave it out."""
    rope = (settings.get(ROPE) or {}).get(kind) or {}
    if (how := rope.get("rope_type", "default")) != "default" or settings.get("rope_scaling"):
        raise CheckpointError(f"{source}: its rotary positions are scaled ({how}); only plain ones can be imported.")
    base = rope.get("rope_theta", settings.get(former))
    return None if base is None else float(base)


def _interval(settings: Mapping[str, Any], source: str | Path) -> int:
    """Every how many layers one sees the whole text."""
    types = settings.get(TYPES)
    if types is None:
        return int(settings.get(INTERVAL, ModernBertConfig.global_attention_interval))
    found = next((n for n, kind in enumerate(types[1:], 1) if kind == "full_attention"), len(types))
    if types != _layer_types(len(types), found):
        raise CheckpointError(f"{source}: {TYPES} are no pattern of every n-th layer, from the first on.")
    return found


def _layer_types(num_layers: int, interval: int) -> list[str]:
    return ["sliding_attention" if number % interval else "full_attention" for number in range(num_layers)]


def modernbert_config_to_hf(config: ModernBertConfig) -> dict[str, Any]:
    """The settings of a `config.json` that describe the encoder."""
    settings = {theirs: getattr(config, ours) for ours, theirs in CONFIG_KEYS.items()}
    bases = {ours: getattr(config, ours) for ours in BASES}
    return {
        **settings,
        **REQUIRED_SETTINGS,
        "model_type": "modernbert",
        "architectures": ["ModernBertModel"],
        TYPES: _layer_types(config.num_layers, config.global_attention_interval),
        INTERVAL: config.global_attention_interval,
        ROPE: {BASES[ours][0]: {"rope_type": "default", "rope_theta": base} for ours, base in bases.items()},
        **{BASES[ours][1]: base for ours, base in bases.items()},
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
    }


def modernbert_table(config: ModernBertConfig) -> Iterator[WeightEntry]:
    """The weights of `ModernBertEncoder`, and those of Hugging Face's `ModernBertModel`."""
    yield WeightEntry("embedding.word_embeddings.weight", ("embeddings.tok_embeddings.weight",))
    for ours, theirs in NORMS.items():
        yield WeightEntry(f"{ours}.weight", (f"{theirs}.weight",))
    for number in range(config.num_layers):
        ours, theirs = f"encoder.layers.{number}", f"layers.{number}"
        yield WeightEntry(
            f"{ours}.self_attention.linear_qkv.weight",
            (f"{theirs}.attn.Wqkv.weight",),
            config.num_attention_heads,
            num_stacked=3,
        )
        yield WeightEntry(f"{ours}.mlp.linear_fc1.weight", (f"{theirs}.mlp.Wi.weight",), num_stacked=2)
        if number:
            yield WeightEntry(f"{ours}.input_layernorm.weight", (f"{theirs}.attn_norm.weight",))
        for mine, other in LAYER.items():
            yield WeightEntry(f"{mine}.weight".format(number), (f"{other}.weight".format(number),))


def encoder_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a `ModernBertModel`, or of a model that holds one under the prefix `model.`, without heads."""
    named = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if not name.startswith(IGNORED_PREFIXES)}
