"""ORQA's fine-tuning: spans of all passages compete, and the retriever learns which of many candidates hold the answer;
gradients are those of a plain, dense computation, at any layout of ranks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end_setting import NUM_PASSAGES, SHAPE, WORDS, Setting, all_rows, write_inputs
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.checkpoint.kinds.extractive_reader import SPAN_READER
from megatron_retrieval.data.examples.retrieved_extractive import RetrievedAnswers
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.end_to_end import FreezeConfig
from megatron_retrieval.models.span_reader import SpanReader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.runs import END_TO_END, curve, train
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_starts import write_starts
from megatron_retrieval.training.steps.end_to_end_step import EndToEndStep, EndToEndStepConfig
from megatron_retrieval.training.steps.extractive_readings import ExtractiveReadings
from megatron_retrieval.training.steps.objective import ObjectiveConfig
from megatron_retrieval.types.extractive import ExtractivePassages
from megatron_retrieval.types.tokens import TokenBatch

K, LONGEST = 2, 2
#: found among the passages that are read, among the further candidates only, and nowhere
ANSWERS = {
    "w1 w6": ["w1", "w1 w2", "w7", "w12"],
    "w3": ["w6 w7", "w20", "w0"],
    "w39 w2": ["w39"],
    "w20": ["w26", "w16"],
    "w5 w5": ["w10 w11", "w11"],
}
LAYOUT = ExtractiveFormatConfig(question_seq_length=2, reader_seq_length=12)


class SpanSetting(Setting):
    """With a reader of whole spans, and passages whose encoder is not trained."""

    def __init__(self, topology: ProcessTopology, folder: str) -> None:
        self.reader = SpanReader(BertConfig(**SHAPE), topology, seed=2)
        super().__init__(topology, Path(folder), self.reader, K, FreezeConfig(freeze_passage_encoder=True))
        self.search.config = dataclasses.replace(self.search.config, num_candidates=NUM_PASSAGES - 1)
        answers = RetrievedAnswers(self.evidence, LAYOUT, self.tokenizer, max_answer_length=LONGEST)
        self.readings = ExtractiveReadings(self.reader, answers, topology, batch_size=3)


def _step(topology: ProcessTopology, folder: str, normalization: Any, early: bool) -> dict[str, Any]:
    setting = SpanSetting(topology, folder)
    settings = ObjectiveConfig(span_normalization=normalization)
    return setting.step(setting.readings, "orqa", early_loss=early, of_objective=settings)


def _spans(setting: SpanSetting, question: str, answers: tuple[str, ...], row: int) -> tuple[Tensor, list[int]]:
    """The logits of all spans of a passage, and which of them are answers, word by word."""
    passage = setting.evidence.passage(row)
    before = ["[CLS]", *question.split()[:2], "[SEP]", passage.title, "[SEP]"]
    text = passage.text.split()[: LAYOUT.reader_seq_length - len(before) - 1]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    ids = torch.tensor([[vocabulary.index(word) for word in [*before, *text, "[SEP]"]]])
    starts = (torch.tensor([before.index("[SEP]") + 1]), torch.tensor([len(before)]))
    passages = ExtractivePassages(TokenBatch(ids, torch.tensor([ids.size(1)])), *starts)
    states = setting.reader.bert(passages.tokens, passages.segments)[0]
    every = [(first, last) for first in range(len(text)) for last in range(first, len(text))]
    pairs = torch.stack([states[[len(before) + first, len(before) + last]] for first, last in every])
    hidden = F.relu(setting.reader.first(pairs[:, 0]) + setting.reader.last(pairs[:, 1]))
    logits = setting.reader.score(setting.reader.norm(hidden))[:, 0]
    wanted = {answer for answer in answers if len(answer.split()) <= LONGEST}
    return logits, [n for n, (first, last) in enumerate(every) if " ".join(text[first : last + 1]) in wanted]


def _dense(topology: ProcessTopology, folder: str, normalization: str, early: bool) -> dict[str, Any]:
    setting = SpanSetting(topology, folder)
    setting.model.train()
    batch = setting.whole_batch()
    queries = setting.model.retriever.encode_queries(batch.retriever_queries)
    vectors = setting.model.retriever.encode_passages(setting.search.tokens(all_rows())).detach()
    loss, counts = torch.zeros(()), {"late": 0, "early": 0}
    for place in range(len(batch)):
        question = setting.questions.store.question(place)
        every = vectors @ queries[place] / 4
        rows = every.topk(NUM_PASSAGES - 1).indices.tolist()
        scores = every[rows]
        read = [_spans(setting, question.text, question.answers, row) for row in rows[:K]]
        if any(correct for _, correct in read):
            counts["late"] += 1
            if normalization == "global":
                logits = torch.cat([score + own for score, (own, _) in zip(scores, read, strict=False)])
                hits = torch.cat([score + own[correct] for score, (own, correct) in zip(scores, read, strict=False)])
                loss = loss - hits.logsumexp(0) + logits.logsumexp(0)
            else:
                priors = scores[:K].softmax(0)
                shares = [own.softmax(0)[correct].sum() for own, correct in read]
                loss = loss - torch.stack([p * s for p, s in zip(priors, shares, strict=True)]).sum().log()
        holding = [n for n, row in enumerate(rows) if _spans(setting, question.text, question.answers, row)[1]]
        if early and holding:
            counts["early"] += 1
            loss = loss - scores[holding].logsumexp(0) + scores.logsumexp(0)
    return {**setting.dense_step(loss / len(batch)), **counts}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("orqa"), ANSWERS)


@pytest.mark.parametrize(
    ("normalization", "early", "num_ranks", "tp_size"),
    [("global", True, 1, 1), ("global", True, 2, 1), ("global", False, 2, 2), ("passage", True, 1, 1)],
)
def test_gradients_are_those_of_a_dense_computation(
    folder: Path, normalization: str, early: bool, num_ranks: int, tp_size: int
) -> None:
    """Each term is nothing where nothing is correct: of some questions the early one, of some both; the passages'
    encoder has no gradient, and nothing that it made changes."""
    (dense,) = run_on_ranks(_dense, 1, str(folder), normalization, early)
    found = run_on_ranks(_step, num_ranks, str(folder), normalization, early, tensor_model_parallel_size=tp_size)[0]
    for metrics in (found["metrics"], found["evaluated"]):
        assert metrics["loss"] == pytest.approx(dense["loss"], rel=1e-5)
        assert metrics["num_unread_questions"] == len(ANSWERS) - dense["late"]
        if early:
            assert 0 < dense["late"] < dense["early"] < len(ANSWERS)
            assert metrics["match@5"] == pytest.approx(dense["early"] / len(ANSWERS))
    assert not any(name.startswith("retriever.towers.passage") for name in found["gradients"])
    for name, gradient in found["gradients"].items():
        torch.testing.assert_close(gradient, dense["gradients"][name], rtol=1e-4, atol=1e-6)


def _trained_passages(topology: ProcessTopology, folder: str) -> str:
    setting = SpanSetting(topology, folder)
    setting.search.frozen = False
    with pytest.raises(ConfigError) as error:
        EndToEndStep(setting.model, setting.readings, setting.search, EndToEndStepConfig(early_loss=True), topology, 3)
    return str(error.value)


def test_early_loss_needs_vectors_that_stay(folder: Path) -> None:
    assert "--freeze-passage-encoder" in run_on_ranks(_trained_passages, 1, str(folder))[0]


def test_a_span_reader_starts_from_a_bert_is_saved_and_answers(tmp_path: Path) -> None:
    """As its user trains it: held-out questions are answered by the logits that it was trained by."""
    starts = write_starts(tmp_path)
    places = {"retriever": "retriever", "reader": "retriever", "evidence": "evidence", "train-data": "biencoder.json"}
    words: list[object] = [word for flag, name in places.items() for word in (f"--{flag}", starts / name)]
    words += ["--reader-kind", "span", "--objective", "orqa", "--early-loss", "--freeze-passage-encoder"]
    words += ["--num-passages", 3, "--num-candidates", 8, "--global-batch-size", 4, "--train-iters", 2, "--lr", "1e-3"]
    words += ["--valid-data", starts / "biencoder.json", "--max-valid-questions", 4, "--no-tensorboard"]
    words += ["--output-dir", tmp_path / "run", "--save", tmp_path / "checkpoints", "--log-interval", 1]
    train(END_TO_END, [str(word) for word in words])
    saved = SPAN_READER.describe(tmp_path / "checkpoints" / "reader")
    assert saved.passage_scores.passage_score_use == "logit"
    assert curve(tmp_path / "run", "match@5")
    assert "valid_exact_match" in (tmp_path / "run" / "metrics.jsonl").read_text()
