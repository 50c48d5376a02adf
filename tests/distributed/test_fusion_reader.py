"""The fusion reader: the plain encoder-decoder with one text, the same loss and gradients at any layout, scores on
passages; over a T5 and over one that is made of BERT's layers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.models import encoded_sources
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig, FusionReader
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.seq2seq import EncoderDecoder
from megatron_retrieval.models.t5 import T5, shift_right
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import random_texts
from megatron_retrieval.training.steps.fusion_step import FusionStep, FusionStepConfig
from megatron_retrieval.training.trainer import reduce_metrics
from megatron_retrieval.types.fusion import FusionBatch
from megatron_retrieval.types.tokens import TokenBatch

NUM_QUESTIONS, NUM_TEXTS, NUM_LABELS = 5, 4, 6
VOCAB_SIZE = 100
COMMON = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_hidden_size": 64,
    "vocab_size": VOCAB_SIZE,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
Shape = T5Config | BertSeq2SeqConfig
SHAPES: dict[str, Shape] = {
    "t5": T5Config(relative_attention_num_buckets=8, **COMMON),
    "bert": BertSeq2SeqConfig(decoder_num_layers=1, max_position_embeddings=24, init_method_std=0.15, **COMMON),
}
Result = dict[str, dict[str, Tensor]]


def _whole_batch(num_slots: int = NUM_QUESTIONS) -> FusionBatch:
    """Questions with texts and answers of different lengths, some without all texts; slots beyond are fillers."""
    fill = num_slots - NUM_QUESTIONS
    texts = random_texts(NUM_QUESTIONS * NUM_TEXTS, 21, seed=5)
    ids, lengths = F.pad(texts.ids, (0, 0, 0, fill * NUM_TEXTS)), F.pad(texts.lengths, (0, fill * NUM_TEXTS), value=1)
    is_real = torch.ones(NUM_QUESTIONS, NUM_TEXTS, dtype=torch.bool)
    is_real[1, 2] = is_real[3, 1:] = False
    random = torch.Generator().manual_seed(6)
    labels = torch.randint(2, VOCAB_SIZE, (NUM_QUESTIONS, NUM_LABELS), generator=random)
    labels[torch.arange(NUM_LABELS) >= torch.tensor([6, 1, 4, 2, 5])[:, None]] = -1
    return FusionBatch(
        TokenBatch(ids, lengths), F.pad(is_real, (0, 0, 0, fill)), F.pad(labels, (0, 0, 0, fill), value=-1)
    )


def _reader(topology: ProcessTopology, shape: Shape, encode_batch_size: int = 3, form: str = "auto") -> FusionReader:
    if isinstance(shape, T5Config):
        model = T5(shape, topology, seed=3)
    else:
        model = BertSeq2Seq(shape, topology, start_id=2, end_id=3, seed=3)
    with torch.no_grad():  # what is read must matter
        for layer in model.decoder.layers:
            layer.cross_attention.linear_proj.weight.mul_(4)
    return FusionReader(model, FusionEncodeConfig(encode_batch_size=encode_batch_size, score_attention=form))


def _gradients(reader: FusionReader, topology: ProcessTopology, attribute: str = "grad") -> dict[str, Tensor]:
    named = reader.model.named_parameters()
    return {name: gather_full(p, topology, getattr(p, attribute)).clone() for name, p in named}


def _plain_logits(model: EncoderDecoder, texts: TokenBatch, decoder_ids: Tensor) -> Tensor:
    return model.logits(model.decoder(decoder_ids, EncodedMemory.of_texts(model.encoder(texts), texts.lengths)))


def _dense_logits(model: EncoderDecoder, batch: FusionBatch, passage_scores: Tensor | None = None) -> list[Tensor]:
    """For each question [L, V]: its texts are encoded one by one, without padding, and joined."""
    logits = []
    for question in range(NUM_QUESTIONS):
        states, bias = [], []
        for text in range(NUM_TEXTS):
            if batch.is_real[question, text]:
                row = torch.tensor([question * NUM_TEXTS + text])
                length = int(batch.texts.lengths[row])
                states.append(model.encoder(TokenBatch(batch.texts.ids[row, :length], torch.tensor([length]))))
                score = torch.zeros(()) if passage_scores is None else passage_scores[question, text]
                bias.append(score.expand(length))
        ids = shift_right(batch.labels[question : question + 1], model.start_id)
        decoded = model.decoder(ids, EncodedMemory(torch.cat(states, 1), torch.cat(bias)[None, None, None]))
        logits.append(model.logits(decoded)[0, :, :VOCAB_SIZE])
    return logits


def _dense_loss(model: EncoderDecoder, batch: FusionBatch, passage_scores: Tensor | None = None) -> Tensor:
    logits = torch.cat(_dense_logits(model, batch, passage_scores))
    return F.cross_entropy(logits, batch.labels.flatten(), ignore_index=-1)


def _scores() -> Tensor:
    return torch.randn(NUM_QUESTIONS, NUM_TEXTS, generator=torch.Generator().manual_seed(9)).requires_grad_()


def _reference(topology: ProcessTopology, shape: Shape) -> Result:
    """Question by question, text by text, in plain torch."""
    batch, scores = _whole_batch(), _scores()
    reader = _reader(topology, shape)
    loss = _dense_loss(reader.model, batch)
    loss.backward()
    result = {"loss": {"loss": loss.detach()}, "gradients": _gradients(reader, topology)}
    with_scores = _reader(topology, shape)
    loss = _dense_loss(with_scores.model, batch, scores)
    loss.backward()
    result["scored"] = {"loss": loss.detach(), "scores": scores.grad, **_gradients(with_scores, topology)}
    each = torch.full((NUM_QUESTIONS, NUM_TEXTS), -torch.inf)
    for text in range(NUM_TEXTS):
        alone = batch.is_real & (torch.arange(NUM_TEXTS) == text)
        for question in alone.any(1).nonzero()[:, 0].tolist():
            row = torch.tensor([question * NUM_TEXTS + text])
            labels = batch.labels[question][batch.labels[question] >= 0]
            logits = _plain_logits(
                reader.model, batch.texts.rows(row), shift_right(labels[None], reader.model.start_id)
            )
            each[question, text] = -F.cross_entropy(logits[0, :, :VOCAB_SIZE], labels, reduction="sum")
    result["each"] = {"each": each.detach()}
    return result


def _of_layout(topology: ProcessTopology, shape: Shape, micro_batch_size: int, encode_batch_size: int) -> Result:
    slots = -(-NUM_QUESTIONS // topology.dp_size)
    own = torch.arange(topology.dp_rank * slots, (topology.dp_rank + 1) * slots)
    share = _whole_batch(slots * topology.dp_size).questions(own)
    reader = _reader(topology, shape, encode_batch_size)
    parallel = DataParallelModel(reader.model, topology)
    step = FusionStep(reader, FusionStepConfig(micro_batch_size=micro_batch_size), topology, seed=3)
    parallel.zero_gradients()
    trained = reduce_metrics(step.forward_backward(share, 0, 1.0), topology)
    parallel.reduce_gradients()
    parts = step.evaluate(share)
    evaluated = {**reduce_metrics(parts, topology), "num_examples": float(parts["loss"].over)}
    assert evaluated["num_examples"] == trained["num_answer_tokens"] == 18
    assert evaluated["loss"] == pytest.approx(trained["loss"], rel=1e-5)
    assert 0 <= evaluated["accuracy"] <= 1
    return {"loss": {"loss": torch.tensor(trained["loss"])}, "gradients": _gradients(reader, topology, "main_grad")}


def _scored(topology: ProcessTopology, shape: Shape, form: str) -> Result:
    """Every rank has the whole batch."""
    batch, scores, reader = _whole_batch(), _scores(), _reader(topology, shape, form=form)
    logits = reader(batch.texts, batch.is_real, shift_right(batch.labels, reader.model.start_id), scores)
    full = _joined(logits, topology)
    loss = F.cross_entropy(full.flatten(0, 1), batch.labels.flatten(), ignore_index=-1)
    loss.backward()
    result: Result = {"scored": {"loss": loss.detach(), "scores": scores.grad, **_gradients(reader, topology)}}
    with torch.no_grad():
        result["each"] = {"each": reader.score_each(batch.texts, batch.is_real, batch.labels)}
    return result


def _scored_in_each_form(topology: ProcessTopology, shape: Shape) -> list[Result]:
    return [
        _scored(topology, dataclasses.replace(shape, recompute_granularity=recompute), form)
        for form in ("explicit", "mask", "feature")
        for recompute in ("none", "full")
    ]


def _joined(logits: Tensor, topology: ProcessTopology) -> Tensor:
    """All ranks' logits; the gradient goes to this rank's part alone."""
    whole: Tensor = gather_from_tensor_model_parallel_region(logits, group=topology.groups.tp)
    return whole[..., :VOCAB_SIZE]


@pytest.fixture(scope="module")
def references() -> dict[str, Result]:
    found: dict[str, Result] = {}
    for name, shape in SHAPES.items():
        (found[name],) = run_on_ranks(_reference, 1, shape)
        assert found[name]["scored"]["loss"].sub(found[name]["loss"]["loss"]).abs() > 1e-3
        assert found[name]["scored"]["scores"].abs().max() > 1e-3
    return found


def _check(result: Result, reference: Result) -> None:
    for part, values in result.items():
        for name, value in values.items():
            torch.testing.assert_close(
                value, reference[part][name], rtol=1e-4, atol=1e-6, msg=lambda m, n=(part, name): f"{n}: {m}"
            )


@pytest.mark.parametrize(
    ("name", "num_ranks", "tp_size", "micro_batch_size", "encode_batch_size"),
    [
        ("t5", 1, 1, 64, 64),
        ("t5", 1, 1, 1, 3),
        ("t5", 2, 2, 2, 5),
        ("t5", 2, 1, 2, 1),
        ("t5", 4, 2, 1, 64),
        ("bert", 1, 1, 1, 3),
        ("bert", 4, 2, 2, 5),
    ],
)
def test_step_equals_the_plain_reference(
    references: dict[str, Result],
    name: str,
    num_ranks: int,
    tp_size: int,
    micro_batch_size: int,
    encode_batch_size: int,
) -> None:
    arguments = (SHAPES[name], micro_batch_size, encode_batch_size)
    for result in run_on_ranks(_of_layout, num_ranks, *arguments, tensor_model_parallel_size=tp_size):
        _check(result, references[name])


@pytest.mark.parametrize(("name", "tp_size"), [("t5", 1), ("t5", 2), ("bert", 2)])
def test_scores_on_passages_and_answers_scored_one_by_one(
    references: dict[str, Result], name: str, tp_size: int
) -> None:
    for results in run_on_ranks(_scored_in_each_form, tp_size, SHAPES[name], tensor_model_parallel_size=tp_size):
        for result in results:
            _check(result, references[name])


def _one_text(topology: ProcessTopology, shape: Shape) -> bool:
    """With one text for each question the reader is the encoder-decoder, and recomputing its layers changes nothing."""
    batch = _whole_batch()
    texts, labels = batch.texts.rows(torch.arange(NUM_QUESTIONS)), batch.labels.clamp(min=0)
    decoder_ids, is_real = shift_right(labels), torch.ones(NUM_QUESTIONS, 1, dtype=torch.bool)
    plain = _reader(topology, shape)
    expected = _plain_logits(plain.model, texts, decoder_ids)
    expected.logsumexp(2).sum().backward()
    for recompute in ("none", "full"):
        reader = _reader(topology, dataclasses.replace(shape, recompute_granularity=recompute), 2)
        logits = reader(texts, is_real, decoder_ids)
        logits.logsumexp(2).sum().backward()
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        for name, gradient in _gradients(reader, topology).items():
            torch.testing.assert_close(gradient, _gradients(plain, topology)[name], rtol=1e-4, atol=1e-5, msg=name)
    # scored for itself, the only text gives the same loss, and the same gradients
    results = []
    for is_each in (True, False):
        reader, is_label = _reader(topology, shape), batch.labels >= 0
        if is_each:
            loss = -reader.score_each(texts, is_real, batch.labels).sum()
        else:
            logits = reader(texts, is_real, shift_right(batch.labels, reader.model.start_id))[is_label]
            loss = vocab_parallel_cross_entropy(logits, batch.labels[is_label]).sum()
        loss.backward()
        results.append({"loss": loss.detach(), **_gradients(reader, topology)})
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-4, atol=1e-5, msg=name)
    # several answers to a source, at once and one after the other, are scored as each for itself
    two = torch.stack([batch.labels, batch.labels.roll(1, 0)], 1)
    with torch.no_grad():
        alone = [reader.score_tokens(texts, is_real, answers)[:, 0] for answers in two.unbind(1)]
        for most in (1, 1024):
            encoded_sources.MOST_TOKENS = most
            found = reader.sources(texts, is_real).token_log_likelihoods(two)
            torch.testing.assert_close(found, torch.stack(alone, 1), rtol=1e-4, atol=1e-5)
    return True


@pytest.mark.parametrize("name", SHAPES)
def test_one_text_is_the_plain_encoder_decoder(name: str) -> None:
    assert run_on_ranks(_one_text, 1, SHAPES[name]) == [True]
