"""Thorough decoding by real readers: the likeliest answer and its likelihood are those of all candidates, each read by
every passage alone."""

from __future__ import annotations

import pytest
import torch
from test_fusion_reader import NUM_QUESTIONS, NUM_TEXTS, SHAPES, _reader, _whole_batch

from megatron_retrieval.evaluation.fusion_search import AnswerSearch
from megatron_retrieval.models import encoded_sources
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.types.fusion import FusionBatch

CONFIG = GenerationConfig(num_beams=3, max_answer_length=5, length_penalty=0.0, marginal_decoding="thorough")
SCORES = torch.linspace(-1, 1, NUM_QUESTIONS * NUM_TEXTS).view(NUM_QUESTIONS, NUM_TEXTS).cos() * 3


@torch.no_grad()
def _found(topology: ProcessTopology) -> dict[str, list[tuple[list[int], float, float]]]:
    """Of every shape, the answers, their scores, and how many there were; they are scored a few at a time."""
    encoded_sources.MOST_TOKENS = 100
    batch, scores = _whole_batch(), PassageScoreConfig(passage_score_use="marginal")
    found = {}
    for name, shape in SHAPES.items():
        search = AnswerSearch(_reader(topology, shape).eval(), CONFIG, scores, topology.groups.tp)
        answers = search.find(batch.texts, batch.is_real, SCORES)
        found[name] = [(written.ids, written.score, written.figures["num_candidates"]) for written in answers]
    return found


@torch.no_grad()
def _enumerated(topology: ProcessTopology) -> dict[str, list[dict[tuple[int, ...], float]]]:
    """log p of every candidate of any passage of a question, for each question."""
    batch, found = _whole_batch(), {}
    for name, shape in SHAPES.items():
        reader = _reader(topology, shape).eval()
        found[name] = [_of_question(reader, topology, batch, question) for question in range(NUM_QUESTIONS)]
    return found


def _of_question(
    reader: FusionReader, topology: ProcessTopology, batch: FusionBatch, question: int
) -> dict[tuple[int, ...], float]:
    passages = batch.is_real[question].nonzero()[:, 0]
    rows, priors = question * NUM_TEXTS + passages, SCORES[question, passages].log_softmax(0)
    alone = torch.ones(len(rows), 1, dtype=torch.bool)
    candidates: set[tuple[int, ...]] = set()
    likelihoods: dict[tuple[int, ...], float] = {}
    for row in rows:
        best = generate(reader.sources(batch.texts.rows(row[None]), alone[:1]), CONFIG, topology.groups.tp)
        candidates |= {tuple(ids[:n].tolist()) for ids, n in zip(best.ids[0], best.lengths[0], strict=True) if n}
    for answer in candidates:
        labels = torch.tensor([answer]).expand(len(rows), -1)
        each = reader.score_each(batch.texts.rows(rows), alone, labels)[:, 0]
        likelihoods[answer] = float((priors + each).logsumexp(0))
    return likelihoods


@pytest.mark.parametrize("tp_size", [1, 2])
def test_the_likeliest_answer(tp_size: int) -> None:
    (expected,) = run_on_ranks(_enumerated, 1)
    for found in run_on_ranks(_found, tp_size, tensor_model_parallel_size=tp_size):
        for name, answers in found.items():
            for (ids, score, num_candidates), own in zip(answers, expected[name], strict=True):
                assert num_candidates == len(own) > 1
                assert tuple(ids) == max(own, key=own.__getitem__)
                assert score == pytest.approx(max(own.values()), abs=1e-4)
