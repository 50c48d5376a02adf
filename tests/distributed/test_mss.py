"""Pretraining by masked salient spans: the same losses at any layout, bit for bit after a stop, learned from what a
passage tells, and what a person watches."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.objectives.end_to_end import individual_topk, joint_topk, rag_token
from megatron_retrieval.recipes.end_to_end import mss
from megatron_retrieval.reports.masked_page import PAGE, write_masked_page
from megatron_retrieval.testing import runs
from megatron_retrieval.testing.tiny_starts import write_spans, write_starts
from megatron_retrieval.training.steps.observing import Observed, answer_likelihoods
from megatron_retrieval.types.search import NULL_ROW

REAL = torch.ones(1, 2, dtype=torch.bool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_starts(tmp_path_factory.mktemp("mss"))
    write_spans(folder)
    return folder


def _words(folder: Path, output: Path, reader: str, *more: object) -> list[str]:
    starts = ["--spans", folder / "spans", "--evidence", folder / "evidence", "--retriever", folder / "retriever"]
    settings = (
        "--global-batch-size 4 --micro-batch-size 2 --num-passages 6 --lr 1e-3 --lr-decay-style constant --seed 5 "
        "--max-answer-length 4 --index-refresh-interval 2 --no-tensorboard --embedding-dtype float32 --log-interval 1 "
        "--save-interval 3 --hidden-dropout 0 --attention-dropout 0 --watch-sentences 6 --watch-examples 2"
    ).split()
    words = [*starts, "--reader", folder / reader, *settings, "--output-dir", output, *more]
    return [str(word) for word in words]


def test_any_layout_learns_and_watches_the_same(folder: Path, tmp_path: Path) -> None:
    """A reader that writes, with the null passage; recall with every new index."""
    more = ("--null-passage", "--train-iters", 4, "--eval-questions", folder / "biencoder.json", "--eval-interval", 50)
    more = (*more, "--best-metric", "recall@1")
    recipe = runs.Recipe(
        mss.MssPretrainingConfig, partial(mss.build, write_page=partial(write_masked_page, tmp_path / PAGE))
    )
    runs.train(recipe, _words(folder, tmp_path / "one", "fusion", *more))
    runs.train(runs.MSS, _words(folder, tmp_path / "two", "fusion", *more), num_ranks=2)
    for key in ("loss", "valid_retrieval_utility_NAME", "valid_posterior_divergence", "valid_holding_passages"):
        one, two = (runs.curve(tmp_path / name, key) for name in ("one", "two"))
        assert len(one) == (4 if key == "loss" else 3)  # at the start, and with the indexes of steps 2 and 4
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert len(runs.curve(tmp_path / "one", "valid_recall@1")) == 3
    page = (tmp_path / PAGE).read_text()
    assert "after 4 steps" in page
    assert page.count("hidden: ") == 2
    assert "posterior" in page
    parallel = _words(folder, tmp_path / "tp", "fusion", *more, "--tensor-model-parallel-size", 2)
    runs.train(runs.MSS, parallel, num_ranks=2, tp_size=2)
    assert runs.curve(tmp_path / "tp") == pytest.approx(runs.curve(tmp_path / "one"), rel=1e-4)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_continued_it_goes_on_bit_for_bit(folder: Path, tmp_path: Path, num_ranks: int) -> None:
    """The span of a sentence is drawn anew in each epoch; the run goes through the sentences more than once."""
    place = ["--save", tmp_path / "run" / "checkpoints", "--load", tmp_path / "run" / "checkpoints"]
    words = _words(folder, tmp_path / "run", "extractive", *place, "--train-iters", 8)
    runs.train(runs.MSS, words, num_ranks)
    expected = runs.curve(tmp_path / "run")
    runs.rewind(tmp_path / "run" / "checkpoints", 3)
    runs.train(runs.MSS, words, num_ranks)
    assert runs.curve(tmp_path / "run") == expected
    assert len(expected) == 8


def test_a_reader_can_begin_as_a_plain_encoder(folder: Path, tmp_path: Path) -> None:
    runs.train(
        runs.MSS, _words(folder, tmp_path / "run", "retriever", "--reader-kind", "extractive", "--train-iters", 2)
    )
    assert all(map(math.isfinite, runs.curve(tmp_path / "run")))
    assert len(runs.curve(tmp_path / "run")) == 2


def test_the_retriever_alone_learns_which_passages_hold_the_span(folder: Path, tmp_path: Path) -> None:
    """The reader is not read, and weight decay leaves it as it was."""
    place = ("--objective", "holding-passages", "--train-iters", 3, "--save", tmp_path / "run" / "checkpoints")
    runs.train(runs.MSS, _words(folder, tmp_path / "run", "extractive", *place, "--weight-decay", 0.5))
    saved = resolve_checkpoint(tmp_path / "run" / "checkpoints")
    changed = {}
    for part, start in (("reader", "extractive"), ("retriever", "retriever")):
        before, after = (runs.saved_weights(at) for at in (resolve_checkpoint(folder / start), saved / part))
        changed[part] = any(not torch.equal(before[name], after[name]) for name in after)
    assert changed == {"reader": False, "retriever": True}
    several = _words(folder, tmp_path / "all", "extractive", "--masked-spans", "all", "--train-iters", 1)
    with pytest.raises(Exception, match="points to one span; give one"):
        runs.train(runs.MSS, several)


def test_hand_case_sequence_and_token_losses_have_opposite_signs() -> None:
    scores = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    tokens = torch.tensor([[[0.5, 0.2], [0.1, 0.8]]]).log()
    sequence = individual_topk(scores, REAL, tokens.sum(2), 1).loss
    assert float(sequence.detach()) == pytest.approx(2.353878, abs=5e-7)
    assert torch.autograd.grad(sequence, scores)[0][0, 0] == pytest.approx(-0.0395, abs=5e-5)
    token = rag_token(scores, REAL, tokens, torch.ones(1, 2, dtype=torch.bool), 1).loss
    assert float(token.detach()) == pytest.approx(1.966113, abs=5e-7)
    assert torch.autograd.grad(token, scores)[0][0, 0] == pytest.approx(0.1339, abs=5e-5)
    # a single label that is scored: both are one
    one = tokens[:, :, :1]
    alike = rag_token(scores, REAL, one, torch.ones(1, 1, dtype=torch.bool), 1).loss
    assert float(alike.detach()) == pytest.approx(float(individual_topk(scores, REAL, one.sum(2), 1).loss.detach()))
    # a single passage: the reader's own loss
    alone = individual_topk(scores[:, :1], REAL[:, :1], tokens[:, :1].sum(2), 1).loss
    assert float(alone.detach()) == pytest.approx(float(joint_topk(tokens[0, 0], 1).loss))


def test_a_reader_that_ignores_passages_teaches_nothing_and_a_telling_passage_all() -> None:
    scores = torch.tensor([[0.3, -0.2]], requires_grad=True)
    uniform = torch.full((1, 2), -1.7)
    assert torch.autograd.grad(individual_topk(scores, REAL, uniform, 1).loss, scores)[0].abs().max() < 1e-7
    telling = torch.tensor([[-torch.inf, -0.1]])
    gradient = torch.autograd.grad(individual_topk(scores, REAL, telling, 1).loss, scores)[0]
    assert gradient[0, 1] < 0 < gradient[0, 0]
    seen = Observed(torch.tensor([[4, NULL_ROW]]), scores.detach(), telling, torch.tensor([-0.1]))
    assert seen.posterior.tolist() == [[0.0, 1.0]]


def test_utility_counts_the_tokens_of_the_span_by_their_place() -> None:
    """Not by their number: sentinels stand at the end of one vocabulary, [MASK] near the start of another."""

    class Said:
        def each_token(self) -> torch.Tensor:
            return torch.tensor([[[-8.0, -1.0, -2.0, -16.0]]])

    class Asked:
        targets = (np.array([7, 99, 3]),)

        def __len__(self) -> int:
            return 1

    found = answer_likelihoods(Said(), Asked(), {7}, by_token=True)  # type: ignore[arg-type]
    assert found.tolist() == [[-3.0]]


def test_a_passage_beside_the_null_one_that_says_the_same_has_no_utility() -> None:
    scores, same = torch.tensor([[1.0, 2.0]]), torch.tensor([[-0.7, -0.7]])
    seen = Observed(torch.tensor([[4, NULL_ROW]]), scores, same, torch.tensor([-0.7]))
    assert float(seen.marginal - seen.alone) == pytest.approx(0.0, abs=1e-6)
    assert seen.posterior[0].tolist() == pytest.approx(seen.priors[0].exp().tolist())
