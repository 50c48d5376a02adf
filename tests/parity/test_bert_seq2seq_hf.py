"""The encoder-decoder of BERT's layers computes what Hugging Face's does, layer by layer."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.checkpoint.huggingface.bert import LAYER, QKV, bert_config_from_hf
from megatron_retrieval.checkpoint.huggingface.format import import_encoder
from megatron_retrieval.checkpoint.store.reader import fill_model
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_hf import VOCABULARY, attention_mask, random_batch, tiny_bert_seq2seq

State = dict[str, Tensor]
TOLERANCE = 1e-5
BATCH = random_batch()
DECODER_IDS = torch.randint(5, len(VOCABULARY), (len(BATCH), 9), generator=torch.Generator().manual_seed(7))


def _config(model: transformers.EncoderDecoderModel) -> BertSeq2SeqConfig:
    bert = bert_config_from_hf(model.encoder.config.to_dict(), "tiny")
    return BertSeq2SeqConfig(**dataclasses.asdict(bert), decoder_num_layers=model.decoder.config.num_hidden_layers)


def _full(model: transformers.EncoderDecoderModel) -> State:
    """Their weights under our names."""
    config, theirs = _config(model), model.decoder.bert.encoder.state_dict()
    encoder = import_encoder(
        model.encoder.state_dict(), bert_config_from_hf(model.encoder.config.to_dict(), "tiny"), "tiny"
    )
    full = {f"bert.{name}": value for name, value in encoder.items()}
    full["output_bias"] = model.decoder.cls.predictions.bias.detach()
    for number in range(config.num_decoder_layers):
        for kind in ("weight", "bias"):

            def of(name: str, number: int = number, kind: str = kind) -> Tensor:
                return theirs[f"layer.{number}.{name}.{kind}"]

            for ours, name in LAYER.items():
                full[_ours(ours, number, kind)] = of(name.partition("{}.")[2])
            own, cross = (
                [of(f"{attention}.self.{part}") for part in ("query", "key", "value")]
                for attention in ("attention", "crossattention")
            )
            full[_ours(QKV, number, kind)] = _by_head(own, config)
            prefix = f"decoder.layers.{number}"
            full[f"{prefix}.cross_attention.linear_q.{kind}"] = cross[0]
            full[f"{prefix}.cross_attention.linear_kv.{kind}"] = _by_head(cross[1:], config)
            full[f"{prefix}.cross_attention.linear_proj.{kind}"] = of("crossattention.output.dense")
            full[f"{prefix}.pre_cross_attn_layernorm.{kind}"] = of("crossattention.output.LayerNorm")
    return full


def _ours(name: str, number: int, kind: str) -> str:
    return f"{name.format(number)}.{kind}".replace("encoder.", "decoder.", 1)


def _by_head(parts: list[Tensor], config: BertSeq2SeqConfig) -> Tensor:
    """Query, key and value interleaved by head."""
    return torch.stack([part.unflatten(0, (config.num_attention_heads, -1)) for part in parts], 1).flatten(0, 2)


@torch.no_grad()
def _gradients(model: transformers.EncoderDecoderModel) -> transformers.EncoderDecoderModel:
    """A model with gradients in the place of weights."""
    held = copy.deepcopy(model)
    for place, parameter in zip(held.parameters(), model.parameters(), strict=True):
        place.copy_(torch.zeros_like(place) if parameter.grad is None else parameter.grad)
    return held


def _loss(states: Tensor) -> Tensor:
    return (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(9))).sum()


def _compute(topology: ProcessTopology, config: BertSeq2SeqConfig, full: State) -> dict[str, object]:
    """What leaves the decoder's embedding and layers, each [B, L, D], the logits, and the gradients of a loss."""
    # no dropout, but the form of attention that training takes
    config = dataclasses.replace(config, hidden_dropout=0.0, attention_dropout=0.0)
    model = BertSeq2Seq(config, topology, start_id=2, end_id=3).train()
    fill_model(model, full.keys(), full.__getitem__, topology, source="tiny")
    hidden: list[Tensor] = []

    def keep(*call: object) -> None:
        hidden.append(call[-1].detach().transpose(0, 1).contiguous())

    memory = EncodedMemory.of_texts(model.encoder(BATCH), BATCH.lengths)
    handles = [part.register_forward_hook(keep) for part in (model.decoder.embedding, *model.decoder.layers)]
    states = model.decoder(DECODER_IDS, memory)
    for handle in handles:
        handle.remove()
    assert torch.equal(states, hidden[-1])
    _loss(states).backward()
    # the output comes after: its bias takes no part in the loss
    gradients = {
        name: gather_full(p, topology, p.grad) for name, p in model.named_parameters() if name != "output_bias"
    }
    return {"hidden": hidden, "logits": model.logits(states).detach(), "gradients": gradients}


@pytest.mark.parametrize("tp_size", [1, 2])
def test_hidden_states_logits_and_gradients(tp_size: int) -> None:
    theirs = tiny_bert_seq2seq()
    full, config = _full(theirs), _config(theirs)
    reference = theirs.decoder.bert(
        DECODER_IDS,
        encoder_hidden_states=theirs.encoder(BATCH.ids, attention_mask=attention_mask(BATCH)).last_hidden_state,
        encoder_attention_mask=attention_mask(BATCH),
        output_hidden_states=True,
    )
    last = reference.last_hidden_state
    _loss(last).backward()
    expected = _full(_gradients(theirs))
    logits = F.linear(last.detach(), full["bert.embedding.word_embeddings.weight"], full["output_bias"])
    results = run_on_ranks(_compute, tp_size, config, full, tensor_model_parallel_size=tp_size)
    for ours in results:
        assert len(ours["hidden"]) == len(reference.hidden_states) == 1 + config.num_decoder_layers
        for number, (state, their_state) in enumerate(zip(ours["hidden"], reference.hidden_states, strict=True)):
            difference = (state - their_state).abs().max().item()
            assert difference < TOLERANCE, f"layer {number} (0: embedding) differs by {difference:.1e}"
        for name, gradient in ours["gradients"].items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=TOLERANCE, msg=name)
    found = torch.cat([ours["logits"] for ours in results], 2)
    torch.testing.assert_close(found[:, :, : config.vocab_size], logits, rtol=0, atol=TOLERANCE)
    assert (found[:, :, config.vocab_size :] == torch.finfo(torch.float32).min).all()
