"""Costs of a language model that reads neighbours: pure functions of counts."""

from __future__ import annotations

from megatron_retrieval.applications.plan import costs
from megatron_retrieval.models.causal_config import CausalShape
from megatron_retrieval.models.engine import padded_vocab_size
from megatron_retrieval.models.retro_config import RetroShape


def causal_parameters(shape: CausalShape) -> int:
    """Weights of a causal language model: embeddings, layers and norms."""
    words = padded_vocab_size(shape.vocab_size, 1) * shape.hidden_size
    layers = shape.num_layers * (_attention(shape) + _feed_forward(shape) + 2 * shape.hidden_size)
    return words * (2 if shape.untie_embeddings_and_output_weights else 1) + layers + shape.hidden_size


def retro_parameters(shape: RetroShape) -> int:
    """Weights of a RETRO."""
    return causal_parameters(shape) + reading_parameters(shape)


def reading_parameters(shape: RetroShape) -> int:
    """Weights of what reads neighbours, all that a retrofit trains: the encoder, and attention to it."""
    encoder, is_gated = shape.encoder_shape, shape.retro_cca_init == "self-attention"
    own_words = padded_vocab_size(shape.vocab_size, 1) * encoder.hidden_size
    words = own_words if encoder.hidden_size != shape.hidden_size else 0
    layers = encoder.num_layers * (_attention(encoder) + _feed_forward(encoder) + 2 * encoder.hidden_size)
    conditioned = len(shape.retro_encoder_cross_attention_layers) * _reading(encoder, shape.hidden_size, is_gated)
    null = 2 * shape.num_groups * shape.head_width if shape.retro_null_key else 0
    reading = len(shape.reading_layers) * (_reading(shape, encoder.hidden_size, is_gated) + null)
    distances = shape.retro_chunk_length + shape.neighbour_length - 1
    heads = shape.num_attention_heads + encoder.num_attention_heads
    tables = {"exact": distances * heads, "buckets": 32 * heads, "none": 0}[shape.retro_relative_positions]
    return words + layers + conditioned + reading + tables + encoder.hidden_size + shape.hidden_size


def _attention(shape: CausalShape) -> int:
    heads = 2 * shape.num_attention_heads + 2 * shape.num_groups
    biases = (shape.num_attention_heads + 2 * shape.num_groups) * shape.head_width if shape.add_qkv_bias else 0
    norms = 2 * shape.head_width if shape.qk_layernorm else 0
    return shape.hidden_size * heads * shape.head_width + biases + norms


def _feed_forward(shape: CausalShape) -> int:
    return 3 * shape.hidden_size * shape.ffn_hidden_size


def _reading(shape: CausalShape, memory_size: int, is_gated: bool) -> int:
    """Attention to a memory, with its norm and its gate."""
    own = 2 * shape.hidden_size * shape.num_attention_heads * shape.head_width
    return own + 2 * memory_size * shape.num_groups * shape.head_width + shape.hidden_size + is_gated


def token_products(shape: CausalShape) -> int:
    """Multiplications of a token with weights in a forward pass without neighbours, the output layer's among them."""
    layers = shape.num_layers * (_attention(shape) + _feed_forward(shape))
    return layers + padded_vocab_size(shape.vocab_size, 1) * shape.hidden_size


def reading_products(shape: RetroShape, num_neighbours: int) -> float:
    """Those that neighbours add for each token, if every chunk has so many of full length."""
    encoder, tokens = shape.encoder_shape, num_neighbours * shape.retro_num_retrieved_chunks
    heads, groups = shape.num_attention_heads * shape.head_width, 2 * shape.num_groups * shape.head_width
    own, other = 2 * encoder.num_attention_heads * encoder.head_width, 2 * encoder.num_groups * encoder.head_width
    encoding = encoder.num_layers * (_attention(encoder) + _feed_forward(encoder)) * tokens
    conditioning = encoder.hidden_size * own * tokens + shape.hidden_size * other
    reading = 2 * shape.hidden_size * heads + encoder.hidden_size * groups * tokens
    conditioned, reads = len(shape.retro_encoder_cross_attention_layers), len(shape.reading_layers)
    return encoding + conditioned * conditioning + reads * reading


def step_products(shape: RetroShape, num_neighbours: int, *, is_frozen: bool) -> float:
    """Multiplications of a token with weights in a training step. Frozen weights get no gradient, nor does what is
    below the first layer that reads."""
    base, reading = token_products(shape), reading_products(shape, num_neighbours)
    if not is_frozen:
        return costs.TRAINING_PASSES * (base + reading)
    below = (shape.reading_layers[0] - 1) * (_attention(shape) + _feed_forward(shape))
    return 2 * base - below + costs.TRAINING_PASSES * reading


def step_bytes(shape: RetroShape, *, is_frozen: bool, half: bool) -> int:
    """Weights, gradients and moments of a training step; frozen weights have no more than themselves."""
    frozen = causal_parameters(shape) if is_frozen else 0
    return costs.training_state_bytes(retro_parameters(shape) - frozen, half_precision=half) + frozen * (
        2 if half else 4
    )


def step_activation_bytes(
    shape: RetroShape, num_tokens: int, num_neighbours: int, *, is_frozen: bool, half: bool
) -> int:
    """What a micro-batch keeps for the backward pass: layers that a gradient passes, the encoder of neighbours, their
    keys and values in every layer that reads, and logits.

    Args:
        num_tokens: of all texts, whose chunks have so many neighbours of full length each.
    """
    recompute, encoder = shape.recompute_granularity == "full", shape.encoder_shape
    read = num_tokens * num_neighbours * shape.retro_num_retrieved_chunks
    passed = shape.num_layers - (shape.reading_layers[0] - 1 if is_frozen else 0)
    layers = sum(
        costs.stack_activation_bytes(
            tokens, number, width, half_precision=half, recompute=recompute, tokens_at_once=tokens
        )
        for tokens, number, width in (
            (num_tokens, passed, shape.hidden_size),
            (read, encoder.num_layers, encoder.hidden_size),
        )
    )
    keys = 2 * shape.num_groups * shape.head_width * (1 if recompute else len(shape.reading_layers))
    memory = read * (encoder.hidden_size + keys) * (2 if half else 4)
    return layers + memory + 2 * num_tokens * shape.vocab_size * 4
