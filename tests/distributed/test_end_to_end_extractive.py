"""End-to-end training with an extractive reader: gradients are those of a plain, dense computation over all passages,
at any layout of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end_setting import SHAPE, WORDS, Setting, best_passages, write_inputs
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER
from megatron_retrieval.data.examples.retrieved_extractive import RetrievedAnswers
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.end_to_end import FreezeConfig
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.training.steps.extractive_readings import SelectingReadings
from megatron_retrieval.types.extractive import ExtractivePassages
from megatron_retrieval.types.search import NULL_ROW
from megatron_retrieval.types.tokens import TokenBatch

K, MAX_ANSWER_LENGTH = 4, 2
#: in passages of their own and of others, twice over, too long, cut off with the text (w14, w29), and nowhere (w39)
ANSWERS = {
    "w1 w6": ["w1", "w1 w2", "w7", "W12", "w21", "w14", "w29"],
    "w3": ["w6 w7", "w11 w12 w13", "w20", "w0"],
    "w39 w2 w9": ["w39", "w11 w12 w13"],
    "w20": ["w26", "w29", "w16 w15", "w27 w28"],
    "w5 w5": ["w10 w11", "w11", "w12", "w3", "w14", "w29"],
}
LAYOUT = ExtractiveFormatConfig(question_seq_length=2, reader_seq_length=11)
SCORES = PassageScoreConfig(passage_score_use="marginal", passage_score_divisor=4.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("extractive"), ANSWERS)


class ExtractiveSetting(Setting):
    """With an extractive reader."""

    def __init__(
        self,
        topology: ProcessTopology,
        folder: str,
        freeze: FreezeConfig | None = None,
        *,
        null_passage: bool = False,
    ) -> None:
        self.reader = ExtractiveReader(BertConfig(**SHAPE), topology, seed=2)
        super().__init__(topology, Path(folder), self.reader, K, freeze, null_passage=null_passage)
        answers = RetrievedAnswers(self.evidence, LAYOUT, self.tokenizer, max_answer_length=MAX_ANSWER_LENGTH)
        self.readings = SelectingReadings(self.reader, answers, topology, batch_size=3)


def _step(topology: ProcessTopology, folder: str, objective: str, null_passage: bool) -> dict[str, Any]:
    setting = ExtractiveSetting(topology, folder, null_passage=null_passage)
    return setting.step(setting.readings, objective)


def _read(
    setting: ExtractiveSetting, question: str, answers: tuple[str, ...], row: int
) -> tuple[Tensor | None, Tensor | None]:
    """p(a | q, z), of one passage, word by word, None where it holds no answer; and the reader's score of it. The null
    passage is not read."""
    if row == NULL_ROW:
        return None, None
    passage = setting.evidence.passage(row)
    words = question.split()[: LAYOUT.question_seq_length]
    before = ["[CLS]", *words, "[SEP]", passage.title, "[SEP]"]
    text = passage.text.split()[: LAYOUT.reader_seq_length - len(before) - 1]
    wanted = {tuple(answer.lower().split()) for answer in answers}
    spans = [
        (first, last)
        for first in range(len(text))
        for last in range(first, min(len(text), first + MAX_ANSWER_LENGTH))
        if tuple(text[first : last + 1]) in wanted
    ]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    ids = torch.tensor([[vocabulary.index(word) for word in [*before, *text, "[SEP]"]]])
    tokens = TokenBatch(ids, torch.tensor([ids.size(1)]))
    passages = ExtractivePassages(tokens, torch.tensor([len(words) + 2]), torch.tensor([len(before)]))
    logits = setting.reader(passages)
    if not spans:
        return None, logits.selection[0]
    starts, ends = (
        F.softmax(values[0, len(before) : len(before) + len(text)], 0) for values in (logits.starts, logits.ends)
    )
    return torch.stack([starts[first] * ends[last] for first, last in spans]).sum(), logits.selection[0]


def _dense(topology: ProcessTopology, folder: str, objective: str, null_passage: bool) -> dict[str, Any]:
    """The objective written down once more: every question and passage for itself, every passage scored."""
    setting = ExtractiveSetting(topology, folder, null_passage=null_passage)
    setting.model.train()
    batch = setting.whole_batch()
    queries = setting.model.retriever.encode_queries(batch.retriever_queries)
    losses, num_read = [], []
    for place in range(len(batch)):
        question = setting.questions.store.question(place)
        best, scores = best_passages(setting, queries[place], K, null_passage=null_passage)
        priors = F.softmax(scores / 16**0.5, 0)
        read = [_read(setting, question.text, question.answers, row) for row in best]
        likelihoods = [own if objective == "individual-topk" or own is None else own.detach() for own, _ in read]
        shares = [prior * own for prior, own in zip(priors, likelihoods, strict=True) if own is not None]
        num_read.append(len(shares))
        if shares:
            losses.append(-torch.stack(shares).sum().log())
        if shares and objective == "emdr2":
            selected = torch.stack([score for _, score in read if score is not None]).softmax(0)
            answers = [own for own, score in read if score is not None]
            chosen = [weight * own for weight, own in zip(selected, answers, strict=True) if own is not None]
            losses.append(-torch.stack(chosen).sum().log())
    return {**setting.dense_step(torch.stack(losses).sum() / len(batch)), "num_read": num_read}


#: an objective, and whether the null passage is a candidate
Case = tuple[str, bool]
ALONE, TOGETHER = ("individual-topk", False), ("emdr2", False)
ALONE_OR_NONE, TOGETHER_OR_NONE = ("individual-topk", True), ("emdr2", True)
CASES = (ALONE, ALONE_OR_NONE, TOGETHER, TOGETHER_OR_NONE)


@pytest.fixture(scope="module")
def denses(folder: Path) -> dict[Case, dict[str, Any]]:
    return {case: run_on_ranks(_dense, 1, str(folder), *case)[0] for case in CASES}


@pytest.mark.parametrize(
    ("num_ranks", "tp_size", "case"),
    [(1, 1, ALONE), (2, 1, ALONE_OR_NONE), (2, 2, ALONE), (4, 1, ALONE), (2, 2, TOGETHER), (4, 1, TOGETHER_OR_NONE)],
)
def test_gradients_are_those_of_a_dense_computation(
    folder: Path, denses: dict[Case, dict[str, Any]], num_ranks: int, tp_size: int, case: Case
) -> None:
    """With four copies the third one has less to do than the first two, and the last one nothing."""
    found = run_on_ranks(_step, num_ranks, str(folder), *case, tensor_model_parallel_size=tp_size)[0]
    dense = denses[case]
    num_unread = dense["num_read"].count(0)
    for metrics in (found["metrics"], found["evaluated"]):
        assert metrics["loss"] == pytest.approx(dense["loss"], rel=1e-5)
        assert metrics["num_unread_questions"] == num_unread
    assert found["evaluated"]["num_examples"] == len(ANSWERS)
    assert "log_likelihood_alone" not in found["evaluated"]
    for name, gradient in dense["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", [ALONE, TOGETHER])
def test_the_reference_reads_and_learns(denses: dict[Case, dict[str, Any]], case: Case) -> None:
    """One question has no answer anywhere, others have some in several of their passages. Where the retriever weighs
    passages the reader's scores of them learn nothing."""
    dense = denses[case]
    assert 0 in dense["num_read"]
    assert max(dense["num_read"]) > 1
    learning = {name for name, gradient in dense["gradients"].items() if gradient.any()}
    for part in ("retriever.towers.query", "retriever.towers.passage", "reader.bert", "reader.span"):
        assert any(name.startswith(part) for name in learning)
    assert any(name.startswith("reader.selection") for name in learning) == (case == TOGETHER)
    assert "score_weight" not in learning


def _nothing_to_learn(topology: ProcessTopology, folder: str) -> bool:
    freeze = FreezeConfig(freeze_query_encoder=True, freeze_passage_encoder=True)
    setting = ExtractiveSetting(topology, folder, freeze)
    found = setting.step(setting.readings, "individual-topk")
    assert found["metrics"]["loss"] == 0
    assert found["metrics"]["num_unread_questions"] == 1
    assert not any(bool(gradient.any()) for gradient in found["gradients"].values())
    return True


def test_nothing_to_learn_from_is_no_error(tmp_path: Path) -> None:
    """A frozen retriever leaves no gradient at all where no passage is read."""
    folder = write_inputs(tmp_path, {"w1": ["w39"]})
    assert run_on_ranks(_nothing_to_learn, 1, str(folder)) == [True]


def _save(topology: ProcessTopology, folder: str, vocabulary: str) -> None:
    """Readers that were trained alone, and with a retriever."""
    shape = BertConfig(**SHAPE)
    for name, scores in (("alone", None), ("together", SCORES)):
        further = (LAYOUT,) if scores is None else (LAYOUT, scores)
        model, tokenizer = ExtractiveReader(shape, topology), WordPieceTokenizer(vocabulary)
        EXTRACTIVE_READER.save(f"{folder}/{name}", model, topology, shape, tokenizer, *further)


def test_a_checkpoint_says_what_to_do_with_scores(folder: Path, tmp_path: Path) -> None:
    run_on_ranks(_save, 1, str(tmp_path), str(folder / "vocab.txt"))
    assert EXTRACTIVE_READER.describe(tmp_path / "alone").passage_scores == PassageScoreConfig()
    assert EXTRACTIVE_READER.describe(tmp_path / "together").passage_scores == SCORES
    manifest = tmp_path / "together" / "iter_0000000" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"marginal"', '"bias"'))
    with pytest.raises(CheckpointError, match="scores as a bias are for readers that write"):
        EXTRACTIVE_READER.describe(tmp_path / "together")
