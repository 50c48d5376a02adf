"""Hugging Face's Llama, Mistral, Qwen 2 and Qwen 3 under this project's names, and back: one table for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.files import check_settings
from megatron_retrieval.checkpoint.huggingface.weight_table import WeightEntry
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.causal_lm import CausalConfig

# ours -> theirs; {} is the number of a layer
STACK = {"embedding.weight": "embed_tokens.weight", "final_layernorm.weight": "norm.weight"}
LAYER = {
    "input_layernorm.weight": ("input_layernorm.weight",),
    "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
    "pre_mlp_layernorm.weight": ("post_attention_layernorm.weight",),
    "mlp.linear_fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
}
HEAD_NORMS = {
    "self_attention.query_norm.weight": ("self_attn.q_norm.weight",),
    "self_attention.key_norm.weight": ("self_attn.k_norm.weight",),
}
QKV, QKV_PARTS = "self_attention.linear_qkv", tuple(f"self_attn.{name}_proj" for name in "qkv")
LM_HEAD, PREFIX = "lm_head.weight", "model."
#: buffers of older releases
IGNORED_ENDING = "rotary_emb.inv_freq"

CONFIG_KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "ffn_hidden_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "layernorm_epsilon": "rms_norm_eps",
}
# settings that configurations may leave out
OPTIONAL_CONFIG_KEYS = {
    "kv_channels": "head_dim",
    "attention_dropout": "attention_dropout",
    "init_method_std": "initializer_range",
}
# settings with which these models compute something else than ours does
REQUIRED_SETTINGS = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_bias": False,
    "use_sliding_window": False,
    "pretraining_tp": 1,
}
ROPE, THETA, TYPE = "rope_parameters", "rope_theta", "rope_type"
#: what `rotary.frequencies` computes
LLAMA_3 = "llama3"
LLAMA_3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
#: base of the positions where a configuration names none
DEFAULT_THETA = 10000.0


@dataclass(frozen=True)
class Release:
    """What a model type of transformers has beside the others.

    Attributes:
        model_type: what a config.json calls it.
        name: what its classes' names begin with.
        has_window: it may have a sliding window.
    """

    model_type: str
    name: str
    add_qkv_bias: bool = False
    qk_layernorm: bool = False
    has_window: bool = False


RELEASES = {
    release.model_type: release
    for release in (
        Release("llama", "Llama"),
        Release("mistral", "Mistral", has_window=True),
        Release("qwen2", "Qwen2", add_qkv_bias=True),
        Release("qwen3", "Qwen3", qk_layernorm=True),
    )
}


def causal_config_from_hf(settings: Mapping[str, Any], source: str | Path) -> CausalConfig:
    """Read the shape from the contents of a `config.json`.

    Raises:
        CheckpointError: a setting is missing, or the model is not one that this project computes.
    """
    check_settings(settings, source, "a causal language model", required=REQUIRED_SETTINGS, needed=CONFIG_KEYS.values())
    release = RELEASES[settings.get("model_type", "llama")]
    if kinds := set(settings.get("layer_types") or ()) - {"full_attention", "sliding_attention" * release.has_window}:
        raise CheckpointError(f"{source}: layer_types has {min(kinds)!r}; only full attention can be imported.")
    values = {ours: settings[theirs] for ours, theirs in CONFIG_KEYS.items()}
    base, scaling_factor = _rotary(settings, source)
    given = {ours: settings.get(theirs) for ours, theirs in OPTIONAL_CONFIG_KEYS.items()}
    return CausalConfig(
        **values,
        **{ours: value for ours, value in given.items() if value is not None},
        rotary_base=base,
        rope_scaling_factor=scaling_factor,
        window_size=settings.get("sliding_window") if release.has_window else None,
        add_qkv_bias=release.add_qkv_bias,
        qk_layernorm=release.qk_layernorm,
        untie_embeddings_and_output_weights=not settings.get("tie_word_embeddings", False),
    )


def _rotary(settings: Mapping[str, Any], source: str | Path) -> tuple[float, float | None]:
    """Base of the positions, and the factor of those that are scaled."""
    rope = settings.get(ROPE) or settings.get("rope_scaling") or {}
    if (share := settings.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0))) != 1.0:
        raise CheckpointError(f"{source}: partial_rotary_factor is {share}; only 1.0 can be imported.")
    base = float(rope.get(THETA) or settings.get(THETA) or DEFAULT_THETA)
    kind = rope.get(TYPE, rope.get("type", "default"))
    if kind == "default" and "full_attention" not in rope:
        return base, None
    if kind == LLAMA_3 and LLAMA_3_SCALING.items() <= rope.items():
        return base, float(rope["factor"])
    raise CheckpointError(
        f"{source}: its rotary positions are scaled ({kind}); models without scaling can be imported, and those with "
        "that of Llama 3.1."
    )


def causal_config_to_hf(config: CausalConfig, *, has_output: bool = False) -> dict[str, Any]:
    """The settings of a `config.json`.

    Args:
        has_output: of the language model; else of its stack alone.

    Raises:
        CheckpointError: no model type of transformers has these parts together.
    """
    release = _release_of(config)
    scaling: dict[str, Any] = {TYPE: "default"}
    if config.rope_scaling_factor is not None:
        scaling = {TYPE: LLAMA_3, "factor": config.rope_scaling_factor, **LLAMA_3_SCALING}
    settings = {theirs: getattr(config, ours) for ours, theirs in (CONFIG_KEYS | OPTIONAL_CONFIG_KEYS).items()}
    suffix = "ForCausalLM" if has_output else "Model"
    return {
        **settings,
        "hidden_act": REQUIRED_SETTINGS["hidden_act"],
        "model_type": release.model_type,
        "architectures": [f"{release.name}{suffix}"],
        "num_key_value_heads": config.num_groups,
        "head_dim": config.head_width,
        "sliding_window": config.window_size,
        THETA: config.rotary_base,
        ROPE: {THETA: config.rotary_base, **scaling},
        "tie_word_embeddings": not config.untie_embeddings_and_output_weights,
    }


def _release_of(config: CausalConfig) -> Release:
    for release in RELEASES.values():
        has_parts = (release.add_qkv_bias, release.qk_layernorm, release.has_window)
        if has_parts == (config.add_qkv_bias, config.qk_layernorm, config.window_size is not None):
            return release
    raise CheckpointError("no model of transformers has these biases, norms and window together: no export.")


def stack_table(config: CausalConfig) -> Iterator[WeightEntry]:
    """The weights of `CausalStack`, and those of `LlamaModel` and its like."""
    shares = (config.num_attention_heads // config.num_groups, 1, 1)
    for ours, theirs in STACK.items():
        yield WeightEntry(ours, (theirs,))
    for number in range(config.num_layers):
        for kind in ("weight", "bias") if config.add_qkv_bias else ("weight",):
            parts = tuple(f"layers.{number}.{part}.{kind}" for part in QKV_PARTS)
            yield WeightEntry(f"decoder.layers.{number}.{QKV}.{kind}", parts, config.num_groups, shares)
        for ours, names in (LAYER | HEAD_NORMS if config.qk_layernorm else LAYER).items():
            yield WeightEntry(f"decoder.layers.{number}.{ours}", tuple(f"layers.{number}.{name}" for name in names))


def causal_table(config: CausalConfig) -> Iterator[WeightEntry]:
    """The weights of `CausalLM`, and those of `LlamaForCausalLM` and its like."""
    for entry in stack_table(config):
        theirs = tuple(f"{PREFIX}{name}" for name in entry.theirs)
        yield WeightEntry(f"stack.{entry.ours}", theirs, entry.num_groups, entry.shares)
    if config.untie_embeddings_and_output_weights:
        yield WeightEntry("output", (LM_HEAD,))


def stack_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a `LlamaModel`, or of a model that holds one under the prefix `model.`, without the output."""
    named = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if name != LM_HEAD and not name.endswith(IGNORED_ENDING)}


def causal_names(state: Mapping[str, Tensor], config: CausalConfig, source: str | Path) -> dict[str, Tensor]:
    """The weights of a `LlamaForCausalLM` under the names of `causal_table`.

    Raises:
        CheckpointError: an output layer that differs from the word embeddings with which it should be one.
    """
    named = {name: tensor for name, tensor in state.items() if not name.endswith(IGNORED_ENDING)}
    if config.untie_embeddings_and_output_weights:
        return named
    words = named.get(f"{PREFIX}{STACK['embedding.weight']}")
    if (head := named.pop(LM_HEAD, words)) is not None and words is not None and not torch.equal(head, words):
        raise CheckpointError(
            f"{source}: {LM_HEAD} is not the matrix of word embeddings, though the configuration says that they are."
        )
    return named
