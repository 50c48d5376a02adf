"""The encoder-decoder of BERT's layers: token by token it gives what it gives at once."""

from __future__ import annotations

import pytest
import torch

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.encoded_sources import EncodedSources
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.models.layer_inputs import TokenCache
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import random_texts

TOLERANCE = 1e-5
VOCAB_SIZE = 100
SHAPE = BertSeq2SeqConfig(
    num_layers=3,
    decoder_num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    max_position_embeddings=24,
    vocab_size=VOCAB_SIZE,
    init_method_std=0.2,
)
TEXTS = random_texts(5, 16, seed=5)
DECODER_IDS = torch.randint(5, VOCAB_SIZE, (5, 9), generator=torch.Generator().manual_seed(7))
SEARCHES = {
    "greedy": GenerationConfig(max_answer_length=12),
    "beams": GenerationConfig(max_answer_length=12, num_beams=3, min_answer_length=2),
}


def _decode(topology: ProcessTopology) -> dict[str, object]:
    """Hidden states of whole sequences and of tokens one by one, and answers."""
    model = BertSeq2Seq(SHAPE, topology, start_id=2, end_id=3, seed=3).eval()
    with torch.no_grad():
        model.output_bias.copy_(torch.linspace(-1, 1, VOCAB_SIZE + 28).chunk(topology.tp_size)[topology.tp_rank])
        memory, cache = EncodedMemory.of_texts(model.encoder(TEXTS), TEXTS.lengths), TokenCache()
        whole = model.decoder(DECODER_IDS, memory)
        kept = memory.precompute(layer.cross_attention for layer in model.decoder.layers)
        steps = [model.decoder(DECODER_IDS[:, :4], kept, cache)]
        steps += [model.decoder(DECODER_IDS[:, t : t + 1], kept, cache) for t in range(4, 7)]
        steps.append(model.decoder(DECODER_IDS[:, 7:], kept, cache))
        changed = DECODER_IDS.clone()
        changed[:, 6:] = 7
        early = model.decoder(changed, memory)[:, :6]
    answers = {
        name: generate(EncodedSources(model, memory), search, topology.groups.tp).best
        for name, search in SEARCHES.items()
    }
    with pytest.raises(ConfigError, match="25 tokens exceeds the encoder's 24 positions"):
        model.decoder(torch.ones(5, 16, dtype=torch.int64), kept, cache)
    return {
        "whole": whole,
        "steps": torch.cat(steps, 1),
        "early": early,
        "answers": {name: found.ids.tolist() for name, found in answers.items()},
    }


def test_decoding_step_by_step_is_decoding_at_once() -> None:
    (one,) = run_on_ranks(_decode, 1)
    torch.testing.assert_close(one["steps"], one["whole"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(one["early"], one["whole"][:, :6], rtol=0, atol=TOLERANCE)
    assert len({tuple(answer) for answer in one["answers"]["greedy"]}) > 1
    for two in run_on_ranks(_decode, 2, tensor_model_parallel_size=2):
        assert two["answers"] == one["answers"]
        torch.testing.assert_close(two["whole"], one["whole"], rtol=0, atol=TOLERANCE)
