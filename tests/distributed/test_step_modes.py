"""What steps do with dropout and with the loss scale: streams of their own in training, nothing in evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor, nn

from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import contrastive_share, random_texts, tiny_dual_encoder_config
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.training.steps.dropout import start_dropout
from megatron_retrieval.training.steps.extractive_step import ExtractiveStep, ExtractiveStepConfig
from megatron_retrieval.training.steps.masked_lm_step import MaskedLMConfig, MaskedLMStep
from megatron_retrieval.training.steps.step import StepModule
from megatron_retrieval.types.contrastive import ContrastiveBatch
from megatron_retrieval.types.extractive import ExtractiveBatch, ExtractivePassages
from megatron_retrieval.types.pretraining import MaskedBatch
from megatron_retrieval.types.tokens import TokenBatch

SEED = 3


def _contrastive(topology: ProcessTopology, dropout: float) -> tuple[StepModule, nn.Module, ContrastiveBatch]:
    model = DualEncoder(tiny_dual_encoder_config(dropout=dropout), topology, seed=SEED)
    batch = contrastive_share(5, 1, 7)
    batch = dataclasses.replace(batch, question_is_real=torch.arange(5) < 4, num_questions=4)
    return ContrastiveStep(model, ContrastiveConfig(micro_batch_size=2), topology, SEED), model, batch


def _shape(dropout: float) -> BertConfig:
    shape: BertConfig = tiny_dual_encoder_config(dropout=dropout).encoder
    return shape


def _masked_lm(topology: ProcessTopology, dropout: float) -> tuple[StepModule, nn.Module, MaskedBatch]:
    model, texts = MaskedLanguageModel(_shape(dropout), topology, seed=SEED), random_texts(4, 9, 5)
    labels = torch.full_like(texts.ids, -1)
    labels[:, :2] = texts.ids[:, 1:3]
    return MaskedLMStep(model, MaskedLMConfig(micro_batch_size=2), topology, SEED), model, MaskedBatch(texts, labels)


def _extractive(topology: ProcessTopology, dropout: float) -> tuple[StepModule, nn.Module, ExtractiveBatch]:
    model, texts = ExtractiveReader(_shape(dropout), topology, seed=SEED), random_texts(6, 12, 5)
    starts = torch.full((6,), 4)
    tokens = TokenBatch(texts.ids, texts.lengths.clamp(min=8))
    spans = torch.tensor([[4, 5], [6, 6]]).expand(3, 2, 2)
    is_real = torch.ones(3, 2, dtype=torch.bool)
    batch = ExtractiveBatch(ExtractivePassages(tokens, starts - 2, starts), is_real, spans, 3)
    return ExtractiveStep(model, ExtractiveStepConfig(micro_batch_size=2), topology, SEED), model, batch


STEPS: dict[str, Callable[[ProcessTopology, float], tuple[StepModule, nn.Module, Any]]] = {
    "contrastive": _contrastive,
    "masked LM": _masked_lm,
    "extractive": _extractive,
}


def _gradients(step: StepModule, model: nn.Module, batch: Any, iteration: int, scale: float) -> dict[str, Tensor]:
    model.zero_grad()
    step.forward_backward(batch, iteration, scale)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _modes(topology: ProcessTopology) -> dict[str, dict[str, bool]]:
    found = {}
    for name, new in STEPS.items():
        step, model, batch = new(topology, 0.5)
        still, _, _ = new(topology, 0.0)
        evaluated = [{key: float(m.part) for key, m in s.evaluate(batch).items()} for s in (step, step, still)]
        one, again, other, scaled = (
            _gradients(step, model, batch, iteration, scale)
            for iteration, scale in ((0, 1.0), (0, 1.0), (1, 1.0), (0, 1024.0))
        )
        found[name] = {
            "evaluation without dropout": evaluated[0] == evaluated[1] == pytest.approx(evaluated[2], rel=1e-5),
            "fillers do not count": evaluated[0].get("num_questions", 4) == 4,
            "the same step drops the same": all(torch.equal(one[name], again[name]) for name in one),
            "another step drops others": not all(torch.equal(one[name], other[name]) for name in one),
            "gradients are scaled": all(
                torch.allclose(one[name] * 1024, scaled[name], rtol=1e-5, atol=1e-5) for name in one
            ),
        }
    return found


def test_evaluation_has_no_dropout_and_training_scales_its_gradients() -> None:
    (found,) = run_on_ranks(_modes, 1)
    assert found == {name: dict.fromkeys(found[name], True) for name in STEPS}


def _alike(num_texts: int) -> TokenBatch:
    """Different texts of one length, which a model without word embeddings takes for the same."""
    return TokenBatch(torch.arange(1, 1 + 6 * num_texts).view(num_texts, 6), torch.full((num_texts,), 6))


def _streams(topology: ProcessTopology) -> dict[str, Tensor]:
    """What comes of texts that only dropout can tell apart, each encoded by itself."""
    encoder = DualEncoder(tiny_dual_encoder_config(dropout=0.5, shared=True), topology, seed=SEED)
    language_model = MaskedLanguageModel(_shape(0.5), topology, seed=SEED)
    for name, parameter in (*encoder.named_parameters(), *language_model.named_parameters()):
        if "word_embeddings" in name:
            parameter.data.zero_()
    vectors: list[Tensor] = []
    encode = encoder._encode

    def kept(tower: str, batch: TokenBatch) -> Tensor:
        vectors.append(encode(tower, batch))
        return vectors[-1]

    encoder._encode = kept  # type: ignore[method-assign]
    batch = contrastive_share(2, 0, 7)
    batch = dataclasses.replace(batch, questions=_alike(2), passages=_alike(2))
    config = ContrastiveConfig(micro_batch_size=1, gradient_caching=False)
    step = ContrastiveStep(encoder, config, topology, SEED)
    batch = dataclasses.replace(batch, excluded=torch.zeros(2, 2 * topology.dp_size, dtype=torch.bool), num_questions=4)
    step.forward_backward(batch, 0, 1.0)
    hidden: list[Tensor] = []
    language_model.bert.register_forward_hook(lambda module, args, output: hidden.append(output.detach().clone()))
    texts = _alike(2)
    masked = MaskedBatch(texts, torch.full_like(texts.ids, -1).index_fill(1, torch.tensor([2]), 5))
    MaskedLMStep(language_model, MaskedLMConfig(micro_batch_size=1), topology, SEED).forward_backward(masked, 0, 1.0)
    return {"vectors": torch.cat(vectors).detach(), "states": torch.cat(hidden)[:, 0]}


def test_no_two_forward_passes_drop_the_same() -> None:
    """Two towers, two micro-batches, two data-parallel ranks."""
    ranks = run_on_ranks(_streams, 2)
    for name, num_passes in (("vectors", 8), ("states", 4)):
        found = torch.cat([rank[name] for rank in ranks])
        assert len(found) == num_passes
        assert len(found.unique(dim=0)) == num_passes, name


def _draws(topology: ProcessTopology) -> list[float]:
    start_dropout(SEED, topology, 0)
    whole = torch.rand(1).item()
    with get_cuda_rng_tracker().fork():
        return [whole, torch.rand(1).item()]


def test_what_tensor_parallel_ranks_share_is_dropped_alike_and_their_parts_are_not() -> None:
    first, second = run_on_ranks(_draws, 2, tensor_model_parallel_size=2)
    assert first[0] == second[0]
    assert first[1] != second[1]
