"""Costs of retrieval and training in bytes, operations and seconds: pure functions of counts."""

from __future__ import annotations

import math

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.exact.flat import QUERIES_AT_ONCE
from megatron_retrieval.index.exact.score_tiles import SCORES_AT_ONCE
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.models.engine import padded_vocab_size
from megatron_retrieval.models.t5_config import T5Config

#: [CLS] and two [SEP] around title and text
_SPECIAL_TOKENS = 3
#: columns of the evidence, each with a 64-bit offset for every passage; and hash and row in the table of ids
_OFFSET_BYTES, _ID_TABLE_BYTES = 5 * 8, 16
#: of 16-bit activations that a layer keeps for the backward pass, for each token and unit of its width, where attention
#: keeps no matrix of weights (Korthikanti et al. 2022, arXiv 2205.05198), and of these what tensor parallelism cuts;
#: masks of dropout have a byte each
_LAYER_BYTES_16_BIT, _CUT_BYTES_16_BIT, _MASK_BYTES = 34, 24, 2
#: values that a layer holds at once where nothing is kept for a backward pass, for each token and unit of its width,
#: beside the inner units of the feed-forward part
_INFERENCE_UNITS = 6
#: forward passes that a training step takes, a backward pass being two; and those of gradient caching or recomputing
TRAINING_PASSES, AGAIN_PASSES = 3, 1
#: assumed of a CPU process, where nothing was measured
CPU_OPERATIONS = 1e11
#: of a process on a GPU, before it does anything
_CUDA_CONTEXT_BYTES = 500 * 10**6
#: of a weight or a moment on disk, and weights with both moments
FP32_BYTES, _SAVED_BYTES = 4, 12
#: of each score that exact search keeps: four bytes, and a fourth of that for maxima
_SCORE_BYTES = 5
#: rows of which the 8-bit copy is made at once, in three blocks of float32
_CODED_ROWS, _CODING_BYTES = 1 << 14, 3 * 4
#: of sentences with salient spans: tokens and spans of one, bytes of its offsets, rows and holders, and of a span
_SENTENCE_TOKENS, _SENTENCE_SPANS, _SENTENCE_BYTES, _SPAN_BYTES = 33.0, 3.2, 48, 12


def spans_bytes(num_passages: int, text_bytes: float, text_tokens: float) -> int:
    """The folder of salient spans: sentences, spans, and which passages hold each sentence, where nearly every sentence
    has a span."""
    sentences = text_tokens / _SENTENCE_TOKENS
    return round(num_passages * (text_bytes + sentences * (_SENTENCE_BYTES + _SENTENCE_SPANS * _SPAN_BYTES)))


def evidence_bytes(num_passages: int, text_bytes: float, text_tokens: float, vocab_size: int) -> int:
    """An evidence folder on disk.

    Args:
        text_bytes: mean of a passage's id, title and text, in UTF-8.
        text_tokens: mean of a passage's title and text, without special tokens.
    """
    token_bytes = 2 if vocab_size <= 1 << 16 else 4
    return round(num_passages * (text_bytes + token_bytes * text_tokens + _OFFSET_BYTES + _ID_TABLE_BYTES))


def vectors_bytes(num_rows: int, dimension: int, value_bytes: int) -> int:
    """Vectors as they are stored, on disk or in memory."""
    return num_rows * dimension * value_bytes


def checkpoint_bytes(num_parameters: int) -> int:
    """A checkpoint of a training run: weights and Adam's two moments in float32."""
    return _SAVED_BYTES * num_parameters


def bert_parameters(bert: BertConfig) -> int:
    """Weights of an encoder: embeddings with their norm, and layers."""
    width, inner = bert.hidden_size, bert.ffn_size
    embeddings = (
        padded_vocab_size(bert.vocab_size, 1) + bert.max_position_embeddings + bert.num_tokentypes + 2
    ) * width
    layer = 4 * (width + 1) * width + (width + 1) * inner + (inner + 1) * width + 4 * width
    return embeddings + bert.num_layers * layer


def bert_of(config: DualEncoderConfig) -> BertConfig:
    """The shape of its encoder.

    Raises:
        ConfigError: it is of another family, whose costs are not known.
    """
    if not isinstance(config.encoder, BertConfig):
        raise ConfigError("the encoder is no BERT; the costs of other encoders are not known.")
    return config.encoder


def dual_encoder_parameters(config: DualEncoderConfig) -> int:
    """Weights of both towers, or of the one that serves as both."""
    projection = config.biencoder_projection_dim
    norm = 2 * projection * config.biencoder_projection_norm
    tower = bert_parameters(bert_of(config)) + (config.encoder.hidden_size + 1) * projection + norm
    return tower * (1 if config.biencoder_shared_query_context_model else 2)


def t5_parameters(t5: T5Config) -> int:
    """Weights of a T5: embeddings, encoder and decoder layers, relative biases and norms."""
    width, heads = t5.hidden_size, t5.num_attention_heads * t5.head_width
    attention = 4 * width * heads
    feed_forward = (3 if t5.gated_linear_unit else 2) * width * t5.ffn_hidden_size
    encoder = t5.num_layers * (attention + feed_forward + 2 * width)
    decoder = t5.num_decoder_layers * (2 * attention + feed_forward + 3 * width)
    biases = 2 * t5.relative_attention_num_buckets * t5.num_attention_heads
    words = padded_vocab_size(t5.vocab_size, 1) * width * (2 if t5.untie_embeddings_and_output_weights else 1)
    return words + encoder + decoder + biases + 2 * width


def training_state_bytes(num_parameters: int, *, half_precision: bool) -> int:
    """Weights, fp32 gradients and Adam's two fp32 moments; in half precision fp32 main weights as well."""
    return num_parameters * (2 + 4 + 4 + 8 if half_precision else 4 + 4 + 8)


def layer_activation_bytes(
    num_tokens: int, width: int, *, half_precision: bool, cut_bytes: int | None = None, tp_size: int = 1
) -> int:
    """What one transformer layer keeps of a batch for the backward pass.

    Args:
        cut_bytes: of a token in 16 bit, of the heads and inner units that tensor-parallel ranks share out; default:
            heads as wide as the layer, and four times as many inner units.
    """
    whole = (_LAYER_BYTES_16_BIT - _CUT_BYTES_16_BIT - _MASK_BYTES) * width
    cut = _CUT_BYTES_16_BIT * width if cut_bytes is None else cut_bytes
    return num_tokens * ((whole + cut // tp_size) * (1 if half_precision else 2) + _MASK_BYTES * width)


def stack_activation_bytes(
    num_tokens: int,
    num_layers: int,
    width: int,
    *,
    half_precision: bool,
    recompute: bool,
    tokens_at_once: int,
    cut_bytes: int | None = None,
    tp_size: int = 1,
) -> int:
    """What a stack of layers keeps of `num_tokens`, that pass through it in batches of `tokens_at_once`.

    With recomputing, the input of every layer stays, and one layer of one batch is computed again.
    """
    tokens = min(num_tokens, tokens_at_once) if recompute else num_tokens
    layer = layer_activation_bytes(tokens, width, half_precision=half_precision, cut_bytes=cut_bytes, tp_size=tp_size)
    if not recompute:
        return num_layers * layer
    return num_tokens * num_layers * width * (2 if half_precision else 4) + layer


def retriever_activation_bytes(
    config: DualEncoderConfig,
    num_texts: int,
    text_tokens: int,
    texts_at_once: int,
    *,
    half_precision: bool,
    tp_size: int = 1,
) -> int:
    """What the retriever keeps of the passages of a micro-batch, encoded `texts_at_once`."""
    bert = bert_of(config)
    return stack_activation_bytes(
        num_texts * text_tokens,
        bert.num_layers,
        bert.hidden_size,
        half_precision=half_precision,
        recompute=bert.recompute_granularity == "full",
        tokens_at_once=texts_at_once * text_tokens,
        tp_size=tp_size,
    )


def embedding_process_bytes(config: DualEncoderConfig, num_tokens: int, *, half_precision: bool) -> int:
    """GPU memory of a process that embeds beside training: weights, a batch of so many tokens, and CUDA itself."""
    bert, value_bytes = bert_of(config), 2 if half_precision else 4
    layer = num_tokens * (_INFERENCE_UNITS * bert.hidden_size + bert.ffn_size)
    return _CUDA_CONTEXT_BYTES + value_bytes * (dual_encoder_parameters(config) + layer)


def encode_operations(bert: BertConfig, num_tokens: float) -> float:
    """Floating-point operations of one text's forward pass: two for each weight of a layer and token, and attention."""
    return bert.num_layers * _layer_operations(bert, num_tokens, num_tokens)


def vector_operations(config: DualEncoderConfig, num_tokens: float) -> float:
    """Of the forward pass that makes a text's vector; of the last layer of [CLS], what its one token needs."""
    bert = bert_of(config)
    read = 1 if config.pooling == "cls" else num_tokens
    below = (bert.num_layers - 1) * _layer_operations(bert, num_tokens, num_tokens)
    return below + _layer_operations(bert, num_tokens, read)


def _layer_operations(bert: BertConfig, num_tokens: float, num_read: float) -> float:
    """Of a layer in which `num_read` tokens look at all: keys and values of all, the rest of those."""
    width = bert.hidden_size
    return 4 * num_tokens * width**2 + num_read * (4 * width**2 + 4 * width * bert.ffn_size + 4 * num_tokens * width)


def encoded_tokens(text_tokens: float, seq_length: int) -> float:
    """Tokens of a passage as the encoder reads it."""
    return min(text_tokens + _SPECIAL_TOKENS, seq_length)


def search_seconds(
    num_rows: int,
    dimension: int,
    value_bytes: int,
    num_queries: int,
    *,
    operations_per_second: float,
    bytes_per_second: float,
) -> float:
    """An exact search of one rank's rows: whichever is slower, the products or reading what is multiplied."""
    products = 2.0 * num_queries * num_rows * dimension / operations_per_second
    traffic = num_rows * dimension * value_bytes / bytes_per_second
    return max(products, traffic)


def search_buffer_bytes(num_rows: int, dimension: int, num_queries: int, *, on_cpu: bool) -> int:
    """Memory that exact search works in: scores, or the blocks of the 8-bit copy that a CPU made before."""
    queries = min(num_queries, QUERIES_AT_ONCE["cpu" if on_cpu else "cuda"])
    scores = min(num_rows * queries, SCORES_AT_ONCE)
    coding = _CODING_BYTES * min(num_rows, _CODED_ROWS) * dimension if on_cpu else 0
    return max(_SCORE_BYTES * scores, coding)


def ranks_needed(divided_bytes: float, whole_bytes: float, rank_bytes: float) -> int | None:
    """The least number of ranks with `rank_bytes` of memory each, over which `divided_bytes` are spread while every one
    of them holds `whole_bytes` besides; None where no number suffices."""
    left = rank_bytes - whole_bytes
    return math.ceil(divided_bytes / left) if left > 0 else None
