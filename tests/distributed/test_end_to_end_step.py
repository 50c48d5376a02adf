"""End-to-end training: every objective's gradients are those of a plain, dense computation over all passages, at any
layout of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end_setting import SHAPE, WORDS, Found, Setting, best_passages, write_inputs
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.examples.retrieved_fusion import RetrievedTexts
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig, FusionLayout
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig, FusionReader
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.seq2seq import EncoderDecoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.training.steps.end_to_end_objectives import OBJECTIVES
from megatron_retrieval.training.steps.readings import FusionReadings
from megatron_retrieval.types.search import NULL_ROW
from megatron_retrieval.types.tokens import TokenBatch

NUM_QUESTIONS = 5
#: objectives of readers that write
WRITERS = [name for name, row in OBJECTIVES.items() if row.needs <= FusionReadings.passes]
LAYOUT = FusionFormatConfig(
    question_seq_length=8, reader_seq_length=30, question_prefix="", title_prefix="", passage_prefix=""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    asked = {f"{WORDS[n * 6]} {WORDS[n * 3 + 1]}": [f"{WORDS[n * 5 + 2]} {WORDS[n + 9]}"] for n in range(NUM_QUESTIONS)}
    return write_inputs(tmp_path_factory.mktemp("end_to_end"), asked)


class FusionSetting(Setting):
    """With a reader that writes."""

    def __init__(
        self,
        topology: ProcessTopology,
        folder: str,
        k: int,
        *,
        null_passage: bool = False,
        shape: dict[str, Any] = SHAPE,
    ) -> None:
        reader = BertSeq2Seq(BertSeq2SeqConfig(**SHAPE), topology, start_id=2, end_id=3, seed=2)
        super().__init__(topology, Path(folder), reader, k, shape=shape, null_passage=null_passage)
        layout = FusionLayout(LAYOUT, self.tokenizer)
        self.texts = RetrievedTexts(self.evidence, layout, self.tokenizer, max_answer_length=6)
        self.reader = reader
        fusion = FusionReader(reader, FusionEncodeConfig(encode_batch_size=3))
        self.readings = FusionReadings(fusion, self.texts, topology)


def _null_vectors(topology: ProcessTopology, folder: str) -> list[torch.Tensor]:
    """With a retriever that drops much in training: of the null passage, before and after a training mode."""
    setting = FusionSetting(topology, folder, 3, null_passage=True, shape={**SHAPE, "hidden_dropout": 0.5})
    rows = torch.tensor([[NULL_ROW]])
    setting.model.retriever.train()
    stored = setting.search.stored_vectors(rows)[0]
    assert setting.model.retriever.training
    return [stored, setting.model.retriever.eval().encode_passages(setting.search.tokens(rows[0]))]


def test_the_null_passage_is_stored_as_it_is_in_evaluation(folder: Path) -> None:
    ((stored, expected),) = run_on_ranks(_null_vectors, 1, str(folder))
    torch.testing.assert_close(stored, expected)


def _step_gradients(topology: ProcessTopology, folder: str, k: int, null_passage: bool) -> Found:
    """Of every objective."""
    found: Found = {}
    for objective in WRITERS:
        setting = FusionSetting(topology, folder, k, null_passage=null_passage)
        found[objective] = setting.step(setting.readings, objective)
    return found


def _token_likelihoods(model: EncoderDecoder, states: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
    """[L] of one answer, given encoder states [S, D] and what is added to the attention of each of them."""
    decoder_ids = torch.cat([torch.tensor([model.start_id]), labels[:-1]])
    key_bias = None if bias is None else bias[None, None, None]
    decoded = model.decoder(decoder_ids[None], EncodedMemory(states[None], key_bias))
    return model.logits(decoded)[0].log_softmax(1)[torch.arange(len(labels)), labels]


def _alone(question: AskedBatch) -> TokenBatch:
    """[CLS] question [SEP]: what is read with the null passage."""
    ids = torch.tensor([[2, *question.reader_questions[0].tolist(), 3]])
    return TokenBatch(ids, torch.tensor([ids.size(1)]))


def _dense_loss(setting: FusionSetting, objective: str, k: int) -> tuple[Tensor, float]:
    """The objective written down once more: one question and one passage at a time, every passage scored; and the mean
    of p(z | q) of the last passage."""
    reader, batch = setting.reader, setting.whole_batch()
    queries = setting.model.retriever.encode_queries(batch.retriever_queries)
    losses, last_priors = [], []
    for place in range(len(batch)):
        question = batch.questions(torch.tensor([place]))
        null_passage = setting.search.config.null_passage
        best, scores = best_passages(setting, queries[place], k, null_passage=null_passage)
        log_prior = F.log_softmax(scores / 16**0.5, 0)
        last_priors.append(log_prior[-1].exp().item())
        labels = setting.texts.labels(question.targets)[0]
        states = []
        for row in best:
            text = _alone(question)
            if row >= 0:
                text, _ = setting.texts.texts(question.reader_questions, torch.tensor([[row]]).numpy())
            length = int(text.lengths[0])
            states.append(reader.encoder(TokenBatch(text.ids[:, :length], text.lengths))[0])
        each = torch.stack([_token_likelihoods(reader, state, labels, None) for state in states])
        weights = setting.model.score_weight * log_prior
        bias = torch.cat([weight.expand(len(state)) for weight, state in zip(weights, states, strict=True)])
        together = _token_likelihoods(reader, torch.cat(states), labels, None).sum()
        marginal = (log_prior + each.sum(1).detach()).logsumexp(0)
        posterior = F.softmax(each.sum(1).detach(), 0)
        losses.append(
            {
                "individual-topk": lambda: -(log_prior + each.sum(1)).logsumexp(0),  # noqa: B023
                "rag-token": lambda: -(log_prior[:, None] + each).logsumexp(0).sum(),  # noqa: B023
                "joint-topk": lambda: -_token_likelihoods(reader, torch.cat(states), labels, bias).sum(),  # noqa: B023
                "fid": lambda: -together,  # noqa: B023
                "emdr2": lambda: -together - marginal,  # noqa: B023
                "distillation": lambda: -together + (posterior * (posterior.log() - log_prior)).sum(),  # noqa: B023
            }[objective]()
        )
    return torch.stack(losses).mean(), sum(last_priors) / len(batch)


def _dense_gradients(topology: ProcessTopology, folder: str, k: int, null_passage: bool) -> Found:
    found: Found = {}
    for objective in WRITERS:
        setting = FusionSetting(topology, folder, k, null_passage=null_passage)
        setting.model.train()
        alone = setting.readings.without_passages(setting.whole_batch())["log_likelihood_alone"].item()
        loss, last_prior = _dense_loss(setting, objective, k)
        found[objective] = {**setting.dense_step(loss), "alone": alone / NUM_QUESTIONS, "last_prior": last_prior}
    return found


@pytest.fixture(scope="module")
def dense(folder: Path) -> dict[bool, Found]:
    """Without and with the null passage."""
    return {with_null: run_on_ranks(_dense_gradients, 1, str(folder), 4, with_null)[0] for with_null in (False, True)}


@pytest.mark.parametrize(
    ("num_ranks", "tp_size", "null_passage"),
    [(1, 1, False), (1, 1, True), (2, 1, True), (2, 2, True), (4, 1, False), (4, 2, False)],
)
def test_gradients_are_those_of_a_dense_computation(
    folder: Path, dense: dict[bool, Found], num_ranks: int, tp_size: int, null_passage: bool
) -> None:
    """With four copies the third one has less to do than the first two, and the last one nothing."""
    results = run_on_ranks(_step_gradients, num_ranks, str(folder), 4, null_passage, tensor_model_parallel_size=tp_size)
    for objective, wanted in dense[null_passage].items():
        found = results[0][objective]
        assert found["metrics"]["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert found["evaluated"]["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert found["evaluated"]["num_examples"] == NUM_QUESTIONS
        assert found["evaluated"]["log_likelihood_alone"] == pytest.approx(wanted["alone"], rel=1e-5)
        if null_passage:
            assert found["metrics"]["null_prior"] == pytest.approx(wanted["last_prior"], rel=1e-5)
        for name, gradient in wanted["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_right_parts_learn(dense: dict[bool, Found]) -> None:
    """Of the references themselves: without scores in its attention, a reader teaches the retriever nothing."""

    def learns(objective: str, part: str) -> bool:
        gradients = dense[False][objective]["gradients"]
        return any(bool(gradient.any()) for name, gradient in gradients.items() if name.startswith(part))

    for objective in WRITERS:
        assert learns(objective, "reader.")
        assert learns(objective, "retriever.towers.query") == (objective != "fid")
        assert learns(objective, "retriever.towers.passage") == (objective != "fid")
        assert learns(objective, "score_weight") == (objective == "joint-topk")
