"""Extractive reading: loss and gradient are those of the whole batch at any layout of ranks and any micro-batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import random_texts, tiny_dual_encoder_config
from megatron_retrieval.training.steps.extractive_step import ExtractiveStep, ExtractiveStepConfig
from megatron_retrieval.training.trainer import reduce_metrics
from megatron_retrieval.types.extractive import ExtractiveBatch, ExtractivePassages
from megatron_retrieval.types.tokens import TokenBatch

NUM_QUESTIONS, NUM_PASSAGES = 5, 3
SHAPE: BertConfig = tiny_dual_encoder_config().encoder
Result = dict[str, dict[str, torch.Tensor]]


def _whole_batch(num_slots: int) -> ExtractiveBatch:
    """Questions with passages of different lengths, some without a third passage; slots beyond them are fillers."""
    texts = random_texts(NUM_QUESTIONS * NUM_PASSAGES, 14, seed=5)
    filler_rows = (num_slots - NUM_QUESTIONS) * NUM_PASSAGES
    lengths = torch.cat([texts.lengths.clamp(min=8), torch.full((filler_rows,), 8)])
    tokens = TokenBatch(torch.cat([texts.ids, torch.ones(filler_rows, 14, dtype=torch.int64)]), lengths)
    starts = torch.full((len(tokens),), 4)
    is_real = torch.ones(num_slots, NUM_PASSAGES, dtype=torch.bool)
    is_real[1, 2] = is_real[3, 1:] = False
    is_real[NUM_QUESTIONS:] = False
    spans = torch.tensor([[4, 5], [6, 6]]).expand(num_slots, 2, 2).clone()
    spans[2, 1] = -1
    return ExtractiveBatch(ExtractivePassages(tokens, starts - 2, starts), is_real, spans, NUM_QUESTIONS)


def _share(topology: ProcessTopology) -> ExtractiveBatch:
    size = -(-NUM_QUESTIONS // topology.dp_size)
    first = topology.dp_rank * size
    return _whole_batch(size * topology.dp_size).questions(torch.arange(first, first + size))


def _step(topology: ProcessTopology, micro_batch_size: int) -> Result:
    model = ExtractiveReader(SHAPE, topology, seed=3)
    parallel = DataParallelModel(model, topology)
    step = ExtractiveStep(model, ExtractiveStepConfig(micro_batch_size=micro_batch_size), topology, seed=3)
    parallel.zero_gradients()
    trained = reduce_metrics(step.forward_backward(_share(topology), 0, 1.0), topology)
    parallel.reduce_gradients()
    parts = step.evaluate(_share(topology))
    evaluated = {**reduce_metrics(parts, topology), "num_examples": float(parts["loss"].over)}
    return {
        "metrics": {name: torch.tensor(value) for name, value in trained.items()},
        "evaluated": {name: torch.tensor(value) for name, value in evaluated.items()},
        "gradients": {name: gather_full(p, topology, p.main_grad).clone() for name, p in model.named_parameters()},
    }


def _reference(topology: ProcessTopology) -> Result:
    """The same question by question and span by span, in plain torch."""
    model, batch = ExtractiveReader(SHAPE, topology, seed=3), _whole_batch(NUM_QUESTIONS)
    losses = []
    for question in range(NUM_QUESTIONS):
        real = int(batch.is_real[question].sum())
        rows = torch.arange(question * NUM_PASSAGES, question * NUM_PASSAGES + real)
        logits = model(batch.passages.rows(rows))
        text = slice(4, int(batch.passages.tokens.lengths[rows[0]]) - 1)
        starts, ends = (F.softmax(values[0, text], 0) for values in (logits.starts, logits.ends))
        likelihood = sum(starts[s - 4] * ends[e - 4] for s, e in batch.spans[question].tolist() if s >= 0)
        losses.append((-torch.log(likelihood), F.cross_entropy(logits.selection[None], torch.tensor([0]))))
    span_loss, selection_loss = (torch.stack(part).mean() for part in zip(*losses, strict=True))
    (span_loss + selection_loss).backward()
    metrics = {"span_loss": span_loss, "selection_loss": selection_loss, "loss": span_loss + selection_loss}
    metrics = {name: value.detach() for name, value in metrics.items()}
    return {
        "metrics": metrics,
        "evaluated": {**metrics, "num_examples": torch.tensor(NUM_QUESTIONS)},
        "gradients": {name: gather_full(p, topology, p.grad).clone() for name, p in model.named_parameters()},
    }


@pytest.fixture(scope="module")
def reference() -> Result:
    (result,) = run_on_ranks(_reference, 1)
    return result


@pytest.mark.parametrize(
    ("num_ranks", "tp_size", "micro_batch_size"), [(1, 1, 64), (1, 1, 1), (2, 2, 2), (2, 1, 2), (4, 2, 1)]
)
def test_step_equals_the_plain_reference(
    reference: Result, num_ranks: int, tp_size: int, micro_batch_size: int
) -> None:
    for result in run_on_ranks(_step, num_ranks, micro_batch_size, tensor_model_parallel_size=tp_size):
        assert 0 <= result["metrics"]["accuracy"] <= result["metrics"]["selection_accuracy"] <= 1
        for part, values in reference.items():
            for name, value in values.items():
                torch.testing.assert_close(
                    result[part][name].double(),
                    value.double(),
                    rtol=1e-4,
                    atol=1e-6,
                    msg=lambda m: f"{part} {name}: {m}",  # noqa: B023
                )
