"""Masked language modelling: the loss and its gradient are those of the whole batch at any layout of ranks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config
from megatron_retrieval.training.steps.masked_lm_step import MaskedLMConfig, MaskedLMStep
from megatron_retrieval.training.trainer import reduce_metrics
from megatron_retrieval.types.pretraining import MaskedBatch
from megatron_retrieval.types.tokens import TokenBatch

NUM_SEQUENCES, NUM_TOKENS = 7, 12
SHAPE: BertConfig = tiny_dual_encoder_config().encoder  # 64 words: half of its rows, or a whole rank's, are padding


def _whole_batch() -> MaskedBatch:
    """Sequences of which each has another number of masked tokens, one of them none."""
    random = torch.Generator().manual_seed(5)
    ids = torch.randint(SHAPE.vocab_size, (NUM_SEQUENCES, NUM_TOKENS), generator=random)
    lengths = torch.randint(4, NUM_TOKENS + 1, (NUM_SEQUENCES,), generator=random)
    is_masked = torch.rand(ids.shape, generator=random) < torch.arange(NUM_SEQUENCES)[:, None] / NUM_SEQUENCES
    is_masked &= torch.arange(NUM_TOKENS) < lengths[:, None]
    labels = torch.randint(SHAPE.vocab_size, ids.shape, generator=random).masked_fill(~is_masked, -1)
    return MaskedBatch(TokenBatch(ids, lengths), labels)


def _share(topology: ProcessTopology) -> MaskedBatch:
    """This rank's rows; the last rank's are filled up with a row that predicts nothing."""
    batch, size = _whole_batch(), -(-NUM_SEQUENCES // topology.dp_size)
    first = topology.dp_rank * size
    rows = torch.arange(first, first + size)
    share = batch.rows(rows.clamp(max=NUM_SEQUENCES - 1))
    return MaskedBatch(share.tokens, share.labels.masked_fill((rows >= NUM_SEQUENCES)[:, None], -1))


def _step(topology: ProcessTopology, micro_batch_size: int) -> dict[str, dict[str, torch.Tensor]]:
    model = MaskedLanguageModel(SHAPE, topology, seed=3)
    parallel = DataParallelModel(model, topology)
    step = MaskedLMStep(model, MaskedLMConfig(micro_batch_size=micro_batch_size), topology, seed=3)
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


def _reference(topology: ProcessTopology) -> dict[str, dict[str, torch.Tensor]]:
    """The same from torch's own cross-entropy, over the real vocabulary only."""
    model, batch = MaskedLanguageModel(SHAPE, topology, seed=3), _whole_batch()
    places = (batch.labels.flatten() >= 0).nonzero()[:, 0]
    labels = batch.labels.flatten()[places]
    logits = model(batch.tokens, places)[:, : SHAPE.vocab_size]
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    metrics = {
        "loss": loss.detach(),
        "accuracy": (logits.argmax(1) == labels).float().mean(),
        "num_masked_tokens": torch.tensor(float(len(labels))),
    }
    gradients = {name: gather_full(p, topology, p.grad).clone() for name, p in model.named_parameters()}
    return {
        "metrics": metrics,
        "evaluated": {**metrics, "num_examples": metrics["num_masked_tokens"]},
        "gradients": gradients,
    }


@pytest.fixture(scope="module")
def reference() -> dict[str, dict[str, torch.Tensor]]:
    (result,) = run_on_ranks(_reference, 1)
    return result


@pytest.mark.parametrize(
    ("num_ranks", "tp_size", "micro_batch_size"), [(1, 1, 64), (1, 1, 2), (2, 2, 3), (2, 1, 1), (4, 2, 2)]
)
def test_step_equals_the_dense_reference(
    reference: dict[str, dict[str, torch.Tensor]], num_ranks: int, tp_size: int, micro_batch_size: int
) -> None:
    for result in run_on_ranks(_step, num_ranks, micro_batch_size, tensor_model_parallel_size=tp_size):
        for part, values in reference.items():
            assert result[part].keys() == values.keys()
            for name, value in values.items():
                torch.testing.assert_close(
                    result[part][name].double(),
                    value.double(),
                    rtol=1e-4,
                    atol=1e-6,
                    msg=lambda m: f"{part} {name}: {m}",  # noqa: B023
                )
