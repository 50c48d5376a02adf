"""An encoder-decoder that starts from a BERT, encoder and decoder alike (Rothe et al. 2020, arXiv 1907.12461)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.store.merged import MergedWeights
from megatron_retrieval.checkpoint.store.reader import fill_model
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.logging import get_logger

OUTPUT_BIAS, _MASKED_LM_BIAS = "output_bias", "head.bias"
_ENCODER, _DECODER = "bert.", "decoder.layers."
#: a decoder layer's part -> the part of an encoder layer that it starts from, where the names differ
_CROSS_ATTENTION = {
    "cross_attention.linear_proj": "self_attention.linear_proj",
    "pre_cross_attn_layernorm": "input_layernorm",
}
_QKV = "self_attention.linear_qkv"
#: which of query, key and value a cross-attention matrix holds
_PARTS_OF_QKV = {"cross_attention.linear_q": slice(0, 1), "cross_attention.linear_kv": slice(1, 3)}

log = get_logger("checkpoint")


def start_from_bert(model: BertSeq2Seq, source: AnyDescription, topology: ProcessTopology) -> None:
    """Fill the whole of `model` from a BERT; the log says from what.

    The encoder is taken as it is. The decoder's layers start from those of the encoder (see `source_layer` and
    `decoder_start`), and the output bias from a masked language model's; without one it is 0.

    Raises:
        CheckpointError: parameters or shapes differ; the message names the first of them.
    """
    reader, prefix, config = MergedWeights(source.folder, source.manifest), source.encoder.prefix, model.config
    has_bias = _MASKED_LM_BIAS in reader.names()

    def encoder(name: str) -> Tensor:
        return reader.full(prefix + name)

    def full(name: str) -> Tensor:
        if name == OUTPUT_BIAS:
            return reader.full(_MASKED_LM_BIAS) if has_bias else torch.zeros(config.vocab_size)
        if name.startswith(_ENCODER):
            return encoder(name.removeprefix(_ENCODER))
        return decoder_start(name.removeprefix(_DECODER), config, encoder)

    parameters = {name for name, _ in model.named_parameters()}
    given = {_ENCODER + name.removeprefix(prefix) for name in reader.names() if name.startswith(prefix)}
    new = {name for name in parameters if not name.startswith(_ENCODER)}
    fill_model(model, given | new, full, topology, source=f"{source.folder}, {prefix.removesuffix('.')}")
    sources = [source_layer(number, config) + 1 for number in range(config.num_decoder_layers)]
    log.info(
        "%s: %s is taken, its layers %s into the decoder as well, where cross-attention starts as their "
        "self-attention; the output takes the word embeddings and %s.",
        source.folder,
        source.encoder.title,
        ", ".join(map(str, sources)),
        "the masked LM's bias" if has_bias else "a new bias of 0",
    )


def source_layer(number: int, config: BertSeq2SeqConfig) -> int:
    """The encoder layer (from 0) that a decoder layer starts from: the same one, or in shorter decoders layers at equal
    distances, the first and the last among them (Shleifer & Rush 2020, arXiv 2010.13002)."""
    return round(number * (config.num_layers - 1) / max(1, config.num_decoder_layers - 1))


def decoder_start(name: str, config: BertSeq2SeqConfig, encoder: Callable[[str], Tensor]) -> Tensor:
    """What a parameter of the decoder's layers starts from.

    Self-attention, feed-forward network and norms are those of `source_layer`. Cross-attention starts as its
    self-attention (query; key and value; projection; norm) rather than at random as in the paper: what it reads are the
    encoder's states, and those are what self-attention has learned to read.

    Args:
        name: of the parameter, after `decoder.layers.`.
        encoder: gives a full tensor of the encoder by its name.
    """
    number, _, parameter = name.partition(".")
    part, _, kind = parameter.rpartition(".")
    layer = f"encoder.layers.{source_layer(int(number), config)}"
    if part in _PARTS_OF_QKV:
        # the three lie interleaved by head: [heads, 3, head width, ...]
        fused = encoder(f"{layer}.{_QKV}.{kind}").unflatten(0, (config.num_attention_heads, 3, -1))
        return fused[:, _PARTS_OF_QKV[part]].flatten(0, 2)
    return encoder(f"{layer}.{_CROSS_ATTENTION.get(part, part)}.{kind}")
