"""What a plan counts of a model, weights, operations and bytes, against the models themselves and by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from megatron_retrieval.applications.plan import costs
from megatron_retrieval.applications.plan.config import READERS
from megatron_retrieval.applications.plan.reader_costs import (
    ReaderShape,
    reader_activation_bytes,
    reader_operations,
    reader_parameters,
)
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.causal_lm import CausalConfig, CausalLM
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config

_READERS: dict[type, Any] = {T5Config: T5, CausalConfig: CausalLM, BertConfig: MaskedLanguageModel}


def _count_parameters(
    topology: ProcessTopology, encoders: list[DualEncoderConfig], readers: list[ReaderShape]
) -> list[int]:
    models: list[nn.Module] = [DualEncoder(encoder, topology) for encoder in encoders]
    models += [_READERS[type(reader)](reader, topology) for reader in readers]
    return [sum(parameter.numel() for parameter in model.parameters()) for model in models]


def test_parameters_are_those_of_the_models() -> None:
    gated = T5Config(
        num_layers=2,
        decoder_num_layers=3,
        hidden_size=32,
        num_attention_heads=4,
        kv_channels=6,
        ffn_hidden_size=48,
        gated_linear_unit=True,
        untie_embeddings_and_output_weights=True,
        vocab_size=70,
    )
    plain = T5Config(num_layers=1, hidden_size=32, num_attention_heads=2, ffn_hidden_size=64, vocab_size=70)
    projected = replace(tiny_dual_encoder_config(), biencoder_projection_dim=8, biencoder_projection_norm=True)
    causal = CausalConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=2,
        ffn_hidden_size=48,
        add_qkv_bias=True,
        qk_layernorm=True,
        untie_embeddings_and_output_weights=True,
        vocab_size=70,
    )
    masked = costs.bert_of(projected)  # of REALM
    encoders, readers = [projected, tiny_dual_encoder_config(shared=True)], [gated, plain, causal, masked]
    (counted,) = run_on_ranks(_count_parameters, 1, encoders, readers)
    computed = [costs.dual_encoder_parameters(encoder) for encoder in encoders]
    assert counted == computed + [reader_parameters(reader) for reader in readers]
    assert reader_parameters(READERS["smollm2-135m"]) == 134_515_008
    assert costs.bert_parameters(BertConfig()) == 108_891_648 + 70 * 768  # 30,522 words become 30,592
    assert costs.t5_parameters(T5Config()) == 222_903_552
    assert reader_parameters(READERS["t5-3b"]) == 2_851_598_336


def test_a_masked_language_model_keeps_what_it_reads_and_its_logits() -> None:
    """REALM: 8 candidates, texts with passages of 384 tokens, 10 of them masked, whose logits every passage gives."""
    layers = costs.stack_activation_bytes(
        8 * 384, 12, 768, half_precision=False, recompute=False, tokens_at_once=8 * 384
    )
    kept = reader_activation_bytes(READERS["bert-base"], 1, 8, 384, 10, half=False)
    assert kept == layers + 2 * 8 * 10 * 30522 * 4


def test_training_memory_by_hand() -> None:
    assert costs.training_state_bytes(1000, half_precision=True) == 18_000
    assert costs.training_state_bytes(1000, half_precision=False) == 16_000
    stack = {"num_layers": 3, "width": 8, "tokens_at_once": 5}
    kept = costs.stack_activation_bytes(10, half_precision=True, recompute=False, **stack)
    assert kept == 3 * 10 * 8 * 34
    assert costs.stack_activation_bytes(10, half_precision=False, recompute=False, **stack) == 3 * 10 * 8 * 66
    # 16-bit inputs of three layers, and one layer of five tokens
    assert costs.stack_activation_bytes(10, half_precision=True, recompute=True, **stack) == 10 * 3 * 8 * 2 + 5 * 8 * 34


def test_of_the_last_layer_only_cls_is_computed() -> None:
    """Two layers of width 4 with 8 inner units, 5 tokens: keys and values of all of them, the rest of [CLS] alone."""
    bert = BertConfig(num_layers=2, hidden_size=4, num_attention_heads=2, ffn_hidden_size=8)
    layer = 5 * 2 * (4 * 16 + 2 * 4 * 8) + 2 * 2 * 5 * 5 * 4
    last = 5 * 2 * 2 * 16 + 2 * (2 * 16 + 2 * 4 * 8) + 2 * 2 * 5 * 4
    assert costs.encode_operations(bert, 5) == 2 * layer
    assert costs.vector_operations(DualEncoderConfig(encoder=bert), 5) == layer + last
    assert costs.vector_operations(DualEncoderConfig(encoder=bert, pooling="mean"), 5) == 2 * layer


def test_a_t5_reads_by_hand() -> None:
    """Two layers of width 4, heads of 6 units together, 8 inner units; two passages of 5 tokens, an answer of 3."""
    shape = T5Config(
        num_layers=2, hidden_size=4, num_attention_heads=2, kv_channels=3, ffn_hidden_size=8, vocab_size=128
    )
    attention, inner = 4 * 4 * 6, 2 * 4 * 8
    encoder = 2 * 10 * (2 * (attention + inner) + 4 * 5 * 6)
    # keys and values of 10 tokens; for 3 tokens its own attention, query and output of the other, and inner units
    decoder = 2 * (10 * 2 * 2 * 4 * 6 + 3 * (2 * (attention + attention // 2 + inner) + 4 * (10 + 3) * 6))
    assert reader_operations(shape, 2, 5, 3) == encoder + decoder + 3 * 2 * 4 * 128
