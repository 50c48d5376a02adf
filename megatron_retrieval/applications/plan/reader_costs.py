"""Costs of readers: an encoder-decoder, or a causal or masked language model."""

from __future__ import annotations

from megatron_retrieval.applications.plan import costs
from megatron_retrieval.applications.plan.retro_costs import causal_parameters
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.causal_lm import CausalConfig
from megatron_retrieval.models.engine import padded_vocab_size
from megatron_retrieval.models.t5_config import T5Config

ReaderShape = T5Config | CausalConfig | BertConfig


def reader_parameters(shape: ReaderShape) -> int:
    """Weights of a reader."""
    if isinstance(shape, BertConfig):
        return masked_lm_parameters(shape)
    return costs.t5_parameters(shape) if isinstance(shape, T5Config) else causal_parameters(shape)


def masked_lm_parameters(bert: BertConfig) -> int:
    """Weights of an encoder with the head of its pretraining: a layer, a norm, and a bias for each word."""
    width = bert.hidden_size
    return costs.bert_parameters(bert) + (width + 1) * width + 2 * width + padded_vocab_size(bert.vocab_size, 1)


def reader_activation_bytes(
    shape: ReaderShape,
    num_questions: int,
    num_passages: int,
    text_tokens: int,
    answer_tokens: int,
    *,
    half: bool,
    tp_size: int = 1,
) -> int:
    """What a reader keeps of a micro-batch for the backward pass: layers, what a decoder reads, and logits.

    Args:
        text_tokens: of a question together with a passage.
        answer_tokens: of an answer.
    """
    read, recompute = num_questions * num_passages * text_tokens, shape.recompute_granularity == "full"
    if not isinstance(shape, T5Config):
        written = num_questions * num_passages * answer_tokens
        # masked tokens are among those that are read
        further = written if isinstance(shape, CausalConfig) else 0
        stacks, memory = [(read + further, shape.num_layers)], 0
    else:
        written = num_questions * answer_tokens
        stacks = [(read, shape.num_layers), (written, shape.num_decoder_layers)]
        # keys and values of what was read, in every layer of the decoder unless they are computed again
        kept_layers = 1 if recompute else shape.num_decoder_layers
        memory = 2 * read * shape.num_attention_heads * shape.head_width * kept_layers * (2 if half else 4) // tp_size
    layers = sum(
        costs.stack_activation_bytes(
            tokens,
            num_layers,
            shape.hidden_size,
            half_precision=half,
            recompute=recompute,
            tokens_at_once=tokens,
            cut_bytes=_cut_bytes(shape),
            tp_size=tp_size,
        )
        for tokens, num_layers in stacks
    )
    return layers + memory + 2 * written * shape.vocab_size * 4 // tp_size


def _cut_bytes(shape: ReaderShape) -> int | None:
    """See `costs.layer_activation_bytes`: four values of a head's unit (query, key, value, what is read) and two of an
    inner unit (before and after its function); of a T5, whose heads and inner units have widths of their own."""
    if not isinstance(shape, T5Config):
        return None
    return 8 * shape.num_attention_heads * shape.head_width + 4 * shape.ffn_hidden_size


def reader_operations(shape: ReaderShape, num_passages: int, text_tokens: int, answer_tokens: int) -> float:
    """Floating-point operations of a forward pass over the passages of one question: two for each weight that a token
    meets, and attention's two products. The arguments are those of `reader_activation_bytes`."""
    if isinstance(shape, BertConfig):
        return num_passages * costs.encode_operations(shape, text_tokens)
    width, heads = shape.hidden_size, shape.num_attention_heads * shape.head_width
    if isinstance(shape, CausalConfig):
        tokens = text_tokens + answer_tokens
        return num_passages * tokens * (2 * causal_parameters(shape) + 4.0 * shape.num_layers * tokens * heads)
    feed_forward = (3 if shape.gated_linear_unit else 2) * width * shape.ffn_hidden_size
    attention, read = 4 * width * heads, num_passages * text_tokens
    encoder = shape.num_layers * read * (2.0 * (attention + feed_forward) + 4 * text_tokens * heads)
    # keys and values of all that was read, for every layer of the decoder
    keys = 2.0 * read * 2 * width * heads
    written = 2 * (attention + attention // 2 + feed_forward) + 4 * (read + answer_tokens) * heads
    decoder = shape.num_decoder_layers * (keys + answer_tokens * written)
    return encoder + decoder + 2.0 * answer_tokens * width * padded_vocab_size(shape.vocab_size, 1)
