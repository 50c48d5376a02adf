"""Smoothed labels of answers that passages give one by one, against the formulas on whole logits; at one rank and with
the vocabulary, which has entries without a token, on two."""

from __future__ import annotations

import pytest
import test_fusion_reader as fusion
import torch
from torch import Tensor

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.training.steps.end_to_end_objectives import OBJECTIVES, require_passes
from megatron_retrieval.training.steps.objective import ObjectiveConfig
from megatron_retrieval.training.steps.readings import FusionReading
from megatron_retrieval.types.fusion import FusionBatch
from megatron_retrieval.types.tokens import TokenBatch

NAMES = ("individual-topk", "rag-token")
SMOOTHING = 0.3
Found = dict[str, dict[str, Tensor]]


def _reader(topology: ProcessTopology) -> FusionReader:
    return fusion._reader(topology, fusion.SHAPES["t5"]).eval()


def _found(topology: ProcessTopology, smoothing: float) -> Found:
    found: Found = {}
    for name in NAMES:
        reader, batch, scores = _reader(topology), fusion._whole_batch(), fusion._scores()
        reading = FusionReading(reader, batch.texts, batch.is_real, batch.labels, topology)
        settings = ObjectiveConfig(label_smoothing=smoothing)
        output = OBJECTIVES[name].loss(reading, scores, torch.zeros(1), fusion.NUM_QUESTIONS, settings)
        output.loss.backward()
        assert scores.grad is not None
        found[name] = {"loss": output.loss.detach(), "log_likelihood": output.metrics["log_likelihood"].part}
        found[name] |= {"scores": scores.grad, **fusion._gradients(reader, topology)}
    return found


def _likelihoods(reader: FusionReader, batch: FusionBatch, question: int) -> Tensor:
    """[K, L, V] of a question's real passages, read one by one without padding, over the tokens that there are."""
    rows = []
    for text in batch.is_real[question].nonzero()[:, 0].tolist():
        row = torch.tensor([question * fusion.NUM_TEXTS + text])
        length = int(batch.texts.lengths[row])
        own = TokenBatch(batch.texts.ids[row, :length], torch.tensor([length]))
        ids = fusion.shift_right(batch.labels[question : question + 1], reader.model.start_id)
        rows.append(fusion._plain_logits(reader.model, own, ids)[0, :, : fusion.VOCAB_SIZE].log_softmax(1))
    return torch.stack(rows)


def _by_formula(topology: ProcessTopology, smoothing: float) -> Found:
    found: Found = {}
    for name in NAMES:
        reader, batch, scores = _reader(topology), fusion._whole_batch(), fusion._scores()
        losses, unsmoothed = [], []
        for question in range(fusion.NUM_QUESTIONS):
            labels = batch.labels[question][batch.labels[question] >= 0]
            priors = scores[question][batch.is_real[question]].log_softmax(0)
            each = _likelihoods(reader, batch, question)[:, : len(labels)]
            places = torch.arange(len(labels))
            if name == "rag-token":
                mixture = (priors[:, None, None] + each).logsumexp(0)
                own, spread = mixture[places, labels], mixture.mean(1)
                losses.append(-((1 - smoothing) * own + smoothing * spread).sum())
                unsmoothed.append(own.sum())
            else:
                own, spread = each[:, places, labels].sum(1), each.mean(2).sum(1)
                losses.append(-(priors + (1 - smoothing) * own + smoothing * spread).logsumexp(0))
                unsmoothed.append((priors + own).logsumexp(0))
        loss = torch.stack(losses).mean()
        loss.backward()
        assert scores.grad is not None
        found[name] = {"loss": loss.detach(), "log_likelihood": torch.stack(unsmoothed).mean().detach()}
        found[name] |= {"scores": scores.grad, **fusion._gradients(reader, topology)}
    return found


def _check(found: Found, expected: Found) -> None:
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_losses_and_gradients_are_those_of_the_formulas() -> None:
    (expected,) = run_on_ranks(_by_formula, 1, SMOOTHING)
    (one,) = run_on_ranks(_found, 1, SMOOTHING)
    _check(one, expected)
    assert all(abs(own["loss"] + own["log_likelihood"]) > 0.1 for own in expected.values())
    for found in run_on_ranks(_found, 2, SMOOTHING, tensor_model_parallel_size=2):
        _check(found, expected)


def test_it_is_refused_where_it_means_nothing() -> None:
    settings = ObjectiveConfig(label_smoothing=0.1)
    for objective, passes in (("fid", {"together", "smoothed"}), ("individual-topk", {"each"})):
        with pytest.raises(ConfigError, match=r"--label-smoothing 0.1 is for --objective individual-topk or rag-token"):
            require_passes(objective, frozenset(passes), "a reader", settings)  # type: ignore[arg-type]
