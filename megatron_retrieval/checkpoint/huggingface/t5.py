"""Hugging Face T5's weights and configuration under this project's names, and back: versions 1.0, 1.1 and Flan."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.files import check_settings
from megatron_retrieval.checkpoint.huggingface.weight_table import WeightEntry, export_weights, import_weights
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.t5_config import T5Config

# ours -> theirs; {} is the number of a layer
EMBEDDING = WeightEntry("embedding.weight", ("shared.weight",))
OUTPUT = WeightEntry("output", ("lm_head.weight",))
STACK = {
    "relative_bias": "block.0.layer.0.SelfAttention.relative_attention_bias",
    "final_layernorm": "final_layer_norm",
}
SELF_ATTENTION = {
    "input_layernorm": ("layer.0.layer_norm",),
    "self_attention.linear_qkv": tuple(f"layer.0.SelfAttention.{name}" for name in "qkv"),
    "self_attention.linear_proj": ("layer.0.SelfAttention.o",),
}
CROSS_ATTENTION = {
    "pre_cross_attn_layernorm": ("layer.1.layer_norm",),
    "cross_attention.linear_q": ("layer.1.EncDecAttention.q",),
    "cross_attention.linear_kv": tuple(f"layer.1.EncDecAttention.{name}" for name in "kv"),
    "cross_attention.linear_proj": ("layer.1.EncDecAttention.o",),
}
FEED_FORWARD = {"pre_mlp_layernorm": ("layer_norm",), "mlp.linear_fc2": ("DenseReluDense.wo",)}
FC1, FC1_PLAIN, FC1_GATED = "mlp.linear_fc1", ("wi",), ("wi_0", "wi_1")

# copies of the word embeddings, and a table that 1.0 was saved with and never read
IGNORED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)

CONFIG_KEYS = {
    "num_layers": "num_layers",
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "kv_channels": "d_kv",
    "ffn_hidden_size": "d_ff",
    "vocab_size": "vocab_size",
    "relative_attention_num_buckets": "relative_attention_num_buckets",
    "hidden_dropout": "dropout_rate",
    "layernorm_epsilon": "layer_norm_epsilon",
}
# settings that older releases did not write
OPTIONAL_CONFIG_KEYS = {
    "relative_attention_max_distance": "relative_attention_max_distance",
    "decoder_num_layers": "num_decoder_layers",
}
_FID_ENCODER, _FID_MODULE = re.compile(r"^encoder\.encoder\."), re.compile(r"^(encoder\.block\.\d+)\.module\.")
FEED_FORWARD_KEY, PLAIN, GATED = "feed_forward_proj", "relu", "gated-gelu"
# settings with which T5 computes something else than ours does
REQUIRED_SETTINGS = {
    "model_type": "t5",
    "is_encoder_decoder": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def import_t5(state: Mapping[str, Tensor], config: T5Config, source: str | Path) -> dict[str, Tensor]:
    """Full fp32 tensors under the names of our `T5`.

    Args:
        state: of Hugging Face's `T5ForConditionalGeneration`.
        source: where it comes from, for messages.

    Raises:
        CheckpointError: weights are missing, unknown, or not of the configured shape.
    """
    state = {name: tensor for name, tensor in _unwrapped(state).items() if name not in IGNORED}
    (shared,), (lm_head,) = EMBEDDING.theirs, OUTPUT.theirs
    if shared not in state:
        raise CheckpointError(f"{source}: 1 weights are missing, among them {shared}.")
    if config.untie_embeddings_and_output_weights:
        # one that trained its output matrix together with the word embeddings saved it once
        state.setdefault(lm_head, state[shared])
    elif not torch.equal(state.pop(lm_head, state[shared]), state[shared]):
        raise CheckpointError(f"{source}: {lm_head} is not {shared}, though the configuration says that they are one.")
    return import_weights(state, t5_table(config), source, "T5")


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of a T5 whose encoder FiD has wrapped, and each of its blocks (Izacard & Grave's `FiDT5`)."""
    names = {name: _FID_ENCODER.sub("encoder.", name) for name in state}
    return {_FID_MODULE.sub(r"\1.", names[name]): tensor for name, tensor in state.items()}


def export_t5(full: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """The inverse of `import_t5`."""
    return export_weights(full, t5_table(config))


def t5_config_from_hf(settings: Mapping[str, Any], source: str | Path) -> T5Config:
    """Read the shape from the contents of a `config.json`.

    Raises:
        CheckpointError: a setting is missing, or the model is not the T5 that this project computes.
    """
    check_settings(settings, source, "a T5", required=REQUIRED_SETTINGS, needed=CONFIG_KEYS.values())
    if (feed_forward := settings.get(FEED_FORWARD_KEY, PLAIN)) not in (PLAIN, GATED):
        raise CheckpointError(
            f"{source}: {FEED_FORWARD_KEY} is {feed_forward!r}; only {PLAIN!r} and {GATED!r} can be imported."
        )
    # what newer releases read from the second, they write into the first
    is_scaled = settings.get("scale_decoder_outputs", settings.get("tie_word_embeddings", True))
    values = {ours: settings[theirs] for ours, theirs in CONFIG_KEYS.items()}
    values |= {ours: settings[theirs] for ours, theirs in OPTIONAL_CONFIG_KEYS.items() if theirs in settings}
    return T5Config(
        **values,
        attention_dropout=values["hidden_dropout"],
        gated_linear_unit=feed_forward == GATED,
        untie_embeddings_and_output_weights=not is_scaled,
    )


def t5_config_to_hf(config: T5Config) -> dict[str, Any]:
    """The settings of a `config.json`."""
    settings = {theirs: getattr(config, ours) for ours, theirs in (CONFIG_KEYS | OPTIONAL_CONFIG_KEYS).items()}
    return {
        **settings,
        **REQUIRED_SETTINGS,
        "d_kv": config.head_width,
        "num_decoder_layers": config.num_decoder_layers,
        FEED_FORWARD_KEY: GATED if config.gated_linear_unit else PLAIN,
        "tie_word_embeddings": not config.untie_embeddings_and_output_weights,
    }


def t5_table(config: T5Config) -> Iterator[WeightEntry]:
    """Our weights of a T5, and those of Hugging Face's `T5ForConditionalGeneration`."""
    yield EMBEDDING
    if config.untie_embeddings_and_output_weights:
        yield OUTPUT
    for stack, num_layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        for ours, theirs in STACK.items():
            yield WeightEntry(f"{stack}.{ours}.weight", (f"{stack}.{theirs}.weight",))
        for ours, parts in _layer_table(config, is_decoder=stack == "decoder").items():
            for layer in range(num_layers):
                names = tuple(f"{stack}.block.{layer}.{part}.weight" for part in parts)
                num_groups = 1 if ours == FC1 else config.num_attention_heads
                yield WeightEntry(f"{stack}.layers.{layer}.{ours}.weight", names, num_groups)


def _layer_table(config: T5Config, *, is_decoder: bool) -> dict[str, tuple[str, ...]]:
    """Our matrices and norms of one layer, and the names in Hugging Face's block."""
    last = "layer.2" if is_decoder else "layer.1"
    fc1 = FC1_GATED if config.gated_linear_unit else FC1_PLAIN
    return {
        **SELF_ATTENTION,
        **(CROSS_ATTENTION if is_decoder else {}),
        **{ours: tuple(f"{last}.{part}" for part in parts) for ours, parts in FEED_FORWARD.items()},
        FC1: tuple(f"{last}.DenseReluDense.{part}" for part in fc1),
    }
