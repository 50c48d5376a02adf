"""The global batch defines the gradient: any number of ranks, any micro-batch, hard negatives, uneven last batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import contrastive_share, tiny_dual_encoder_config
from megatron_retrieval.training.passage_memory import PassageMemory
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.training.trainer import reduce_metrics
from megatron_retrieval.types.contrastive import ContrastiveBatch

Result = dict[str, dict[str, torch.Tensor]]


def _gradients(
    topology: ProcessTopology,
    num_questions: int,
    settings: list[dict[str, object]],
    shape: DualEncoderConfig | None = None,
) -> list[Result]:
    """Full gradients and metrics of one step, for each of several micro-batch settings."""
    model = DualEncoder(shape or tiny_dual_encoder_config(), topology, seed=3)
    parallel = DataParallelModel(model, topology)
    batch = contrastive_share(num_questions, 1, 7, topology.dp_rank, topology.dp_size)
    results = []
    for setting in settings:
        step = ContrastiveStep(model, ContrastiveConfig(**setting), topology, seed=3)  # type: ignore[arg-type]
        parallel.zero_gradients()
        metrics = reduce_metrics(step.forward_backward(batch, 0, 1.0), topology)
        parallel.reduce_gradients()
        gradients = {name: gather_full(p, topology, p.main_grad).clone() for name, p in model.named_parameters()}
        results.append({"metrics": {k: torch.tensor(v) for k, v in metrics.items()}, "gradients": gradients})
    return results


SETTINGS: list[dict[str, object]] = [
    {"micro_batch_size": 1},
    {"micro_batch_size": 2},
    {"micro_batch_size": 8},
    {"micro_batch_size": 4, "gradient_caching": False},
]


@pytest.mark.parametrize("num_questions", [8, 7, 3], ids=["even", "uneven", "fewer than ranks"])
def test_gradient_does_not_depend_on_layout(num_questions: int) -> None:
    whole: list[dict[str, object]] = [{"micro_batch_size": 64}]
    ((expected,),) = run_on_ranks(_gradients, 1, num_questions, whole)
    layouts = [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2)] if num_questions == 7 else [(4, 1)]
    for num_ranks, tp_size in layouts:
        for results in run_on_ranks(_gradients, num_ranks, num_questions, SETTINGS, tensor_model_parallel_size=tp_size):
            for setting, result in zip(SETTINGS, results, strict=True):
                message = f"{num_ranks} ranks, tensor-parallel {tp_size}, {setting}"
                _assert_close(result, expected, message)


def _of_families(topology: ProcessTopology) -> list[Result]:
    """One step of a dual encoder of each family beside BERT."""
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 64, "vocab_size": 64}
    sizes |= {"max_position_embeddings": 18, "init_method_std": 0.2}
    shapes = [row.shape(**_known(row.shape, sizes)) for name, row in ENCODER_FAMILIES.items() if name != "bert"]
    settings: list[dict[str, object]] = [{"micro_batch_size": 2}]
    return [_gradients(topology, 7, settings, DualEncoderConfig(encoder=shape, pooling="mean"))[0] for shape in shapes]


def _known(shape: type[EncoderShape], sizes: dict[str, float]) -> dict[str, Any]:
    """Those that the shape has; no dropout."""
    names = [field.name for field in dataclasses.fields(shape)]  # type: ignore[arg-type]
    return {name: 0.0 if "dropout" in name else sizes[name] for name in names if "dropout" in name or name in sizes}


def test_gradients_of_every_family_do_not_depend_on_the_layout() -> None:
    (expected,) = run_on_ranks(_of_families, 1)
    for results in run_on_ranks(_of_families, 4, tensor_model_parallel_size=2):
        for name, result, own in zip(list(ENCODER_FAMILIES)[1:], results, expected, strict=True):
            _assert_close(result, own, name)


def _assert_close(result: Result, expected: Result, message: str) -> None:
    for part in ("metrics", "gradients"):
        assert result[part].keys() == expected[part].keys()
        for name, value in expected[part].items():
            torch.testing.assert_close(
                result[part][name].double(),
                value.double(),
                rtol=1e-4,
                atol=1e-6,
                msg=lambda m: f"{message}, {name}: {m}",  # noqa: B023
            )


def _is_false(questions: Any, passages: Any) -> Any:
    """Every fifth pair of a question and a passage of another batch."""
    return (questions[:, None] + passages) % 5 == 0


def _remembering(topology: ProcessTopology) -> list[Result]:
    """Two steps of a model that does not change: the second has the passages of the first as further negatives."""
    model = DualEncoder(tiny_dual_encoder_config(), topology, seed=3)
    parallel = DataParallelModel(model, topology)
    memory = PassageMemory(1, 1, model.dimension, _is_false, topology)
    config = ContrastiveConfig(micro_batch_size=2, memory_batches=1, matryoshka_dims=(8,))
    step = ContrastiveStep(model, config, topology, 3, memory=memory)
    batches = [contrastive_share(7, 1, seed, topology.dp_rank, topology.dp_size) for seed in (7, 8)]
    results = []
    for iteration, batch in enumerate(batches):
        parallel.zero_gradients()
        metrics = reduce_metrics(step.forward_backward(batch, iteration, 1.0), topology)
        parallel.reduce_gradients()
        gradients = {name: gather_full(p, topology, p.main_grad).clone() for name, p in model.named_parameters()}
        results.append({"metrics": {k: torch.tensor(v) for k, v in metrics.items()}, "gradients": gradients})
    assert memory.state() == {"sizes": [14]}
    if topology.world_size == 1:
        results[1]["metrics"]["by hand"] = _by_hand(model, *batches)
    return results


def _by_hand(model: DualEncoder, before: ContrastiveBatch, batch: ContrastiveBatch) -> torch.Tensor:
    with torch.no_grad():
        queries = model.eval().encode_queries(batch.questions)
        passages = model.encode_passages(batch.passages)
        remembered = model.encode_passages(before.passages)
    total = torch.zeros(())
    for size in (model.dimension, 8):
        scores = (queries[:, :size] @ torch.cat([passages, remembered])[:, :size].t()) / size**0.5
        excluded = torch.cat([batch.excluded, torch.from_numpy(_is_false(np.arange(7), np.arange(14)))], 1)
        total = total + cross_entropy(scores.masked_fill(excluded, -torch.inf), torch.arange(0, 14, 2))
    return total


def test_passages_of_batches_before_are_negatives() -> None:
    (expected,) = run_on_ranks(_remembering, 1)
    by_hand = expected[1]["metrics"].pop("by hand")
    assert float(expected[1]["metrics"]["loss"]) == pytest.approx(float(by_hand), rel=1e-5)
    for results in run_on_ranks(_remembering, 2):
        for result, own in zip(results, expected, strict=True):
            for part in ("metrics", "gradients"):
                for name, value in own[part].items():
                    close = {"rtol": 1e-4, "atol": 1e-6}
                    torch.testing.assert_close(result[part][name].double(), value.double(), **close)


def _dropout_gradients(topology: ProcessTopology) -> list[float]:
    model = DualEncoder(tiny_dual_encoder_config(dropout=0.2), topology, seed=3)
    batch = contrastive_share(6, 1, 7)
    for values in (batch.passages.ids, batch.passages.lengths):
        values[5] = values[2]  # encoded once, with a gradient from two places
    norms = []
    for setting, iteration in [(False, 0), (True, 0), (True, 1)]:
        step = ContrastiveStep(model, ContrastiveConfig(micro_batch_size=4, gradient_caching=setting), topology, seed=3)
        model.zero_grad()
        step.forward_backward(batch, iteration, 1.0)
        norms.append(sum(float(p.grad.norm()) for p in model.parameters() if p.grad is not None))
    return norms


def test_cached_pass_repeats_the_dropout_of_the_first() -> None:
    ((uncached, cached, later),) = run_on_ranks(_dropout_gradients, 1)
    assert cached == pytest.approx(uncached, rel=1e-4)
    assert later != pytest.approx(uncached, rel=1e-3)
