"""Every contrastive loss has sentence-transformers' value, and the same gradients at any number of ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from sentence_transformers import losses as theirs
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import contrastive_share, tiny_dual_encoder_config
from megatron_retrieval.training.steps.contrastive_losses import CONTRASTIVE_LOSSES
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig, ContrastiveStep
from megatron_retrieval.training.trainer import reduce_metrics

NUM_QUESTIONS, NUM_NEGATIVES = 5, 2
TEMPERATURES = {
    "nll": 0.05,
    "gist": 0.01,
    "contrastive": 1.0,
    "online-contrastive": 1.0,
    "margin-mse": 1.0,
    "kl": 0.5,
}
TEACHER_TEMPERATURE = 2.0
COSINES = dataclasses.replace(tiny_dual_encoder_config(), normalize_embeddings=True)
SIZE = COSINES.dimension
Result = dict[str, Tensor]


def _step(
    topology: ProcessTopology, name: str, micro_batch_size: int = 64, **settings: Any
) -> tuple[ContrastiveStep, DualEncoder]:
    model = DualEncoder(COSINES, topology, seed=3)
    guide = DualEncoder(COSINES, topology, seed=4).eval() if name == "gist" else None
    config = ContrastiveConfig(
        contrastive_loss=name,
        temperature=TEMPERATURES[name],
        retriever_score_scaling=False,
        micro_batch_size=micro_batch_size,
        **settings,
    )
    return ContrastiveStep(model, config, topology, 3, guide), model


def _results(topology: ProcessTopology, micro_batch_size: int) -> dict[str, Result]:
    """Loss and gradients of one step by every loss, for questions with one positive and with several."""
    results = {}
    cases = [("nll", 1, "mean", None, 0.0), ("nll", 2, "log-sum", None, 0.0), ("kl", 2, "mean", (8,), 0.5)]
    cases += [(name, 2, "mean", (8,), 0.0) for name in CONTRASTIVE_LOSSES]
    for name, num_positives, how, sizes, label_weight in cases:
        batch = contrastive_share(
            NUM_QUESTIONS, NUM_NEGATIVES, 7, topology.dp_rank, topology.dp_size, num_positives=num_positives
        )
        settings = {"positives_loss": how, "matryoshka_dims": sizes, "label_weight": label_weight}
        step, model = _step(topology, name, micro_batch_size, **settings)
        parallel = DataParallelModel(model, topology)
        parallel.zero_gradients()
        metrics = reduce_metrics(step.forward_backward(batch, 0, 1.0), topology)
        parallel.reduce_gradients()
        gradients = {key: gather_full(p, topology, p.main_grad).clone() for key, p in model.named_parameters()}
        key = f"{name} of {num_positives}, {how}, {len(sizes or ())} prefixes, labels {label_weight}"
        results[key] = {"loss": torch.tensor(metrics["loss"], dtype=torch.float32), **gradients}
    return results


def test_layouts_do_not_matter() -> None:
    ((expected),) = run_on_ranks(_results, 1, 64)
    assert all(own["loss"] > 0 for own in expected.values())
    losses = [float(own["loss"]) for name, own in expected.items() if name.startswith("nll")]
    assert len({round(loss, 5) for loss in losses}) == len(losses)
    for results in run_on_ranks(_results, 2, 2):
        for name, own in expected.items():
            torch.testing.assert_close(results[name], own, rtol=1e-4, atol=2e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023


class _Fixed(nn.Module):
    """A model whose vectors are given."""

    max_seq_length = 8

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"w": 0}, unk_token="w")))

    def get_embedding_dimension(self) -> int:
        return SIZE

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.name]}


def _values(topology: ProcessTopology) -> dict[str, tuple[float, float]]:
    """Ours and theirs."""
    batch = contrastive_share(NUM_QUESTIONS, NUM_NEGATIVES, 7)
    stride = 1 + NUM_NEGATIVES
    # theirs excludes nothing, and has all scores
    excluded = torch.zeros_like(torch.as_tensor(batch.excluded))
    batch = dataclasses.replace(batch, excluded=excluded, teacher=torch.as_tensor(batch.teacher).nan_to_num(3.0))
    values = {}
    for name in CONTRASTIVE_LOSSES:
        # its negatives stand in one column
        num_negatives = 1 if name == "gist" else NUM_NEGATIVES
        own = batch
        if name == "gist":
            kept = torch.arange(NUM_QUESTIONS * stride).view(-1, stride)[:, :2].flatten()
            excluded = batch.excluded[:, kept]
            own = dataclasses.replace(batch, passages=batch.passages.rows(kept), excluded=excluded)
        step, model = _step(topology, name, teacher_temperature=1.0 if name == "margin-mse" else TEACHER_TEMPERATURE)
        encoders = {"own": model.eval(), "guide": DualEncoder(COSINES, topology, seed=4).eval()}
        with torch.no_grad():
            queries = {key: encoder.encode_queries(own.questions) for key, encoder in encoders.items()}
            passages = {
                key: encoder.encode_passages(own.passages).unflatten(0, (NUM_QUESTIONS, -1))
                for key, encoder in encoders.items()
            }
        columns = [queries, *({key: found[:, n] for key, found in passages.items()} for n in range(1 + num_negatives))]
        pairs = [queries["own"].repeat_interleave(stride, 0), passages["own"].flatten(0, 1)]
        labels = (torch.arange(len(pairs[0])) % stride == 0).long() if name != "gist" else torch.zeros(0)
        loss = {
            "nll": lambda c: theirs.MultipleNegativesRankingLoss(_Fixed("own"))(c, labels),  # noqa: B023
            "gist": lambda c: theirs.GISTEmbedLoss(_Fixed("own"), _Fixed("guide"))(c, labels),  # noqa: B023
            "contrastive": lambda _: theirs.ContrastiveLoss(None).compute_loss_from_embeddings(pairs, labels),  # noqa: B023
            "online-contrastive": lambda _: theirs.OnlineContrastiveLoss(None).compute_loss_from_embeddings(
                pairs,  # noqa: B023
                labels,  # noqa: B023
            ),
            "margin-mse": lambda c: theirs.MarginMSELoss(_Fixed("own"))(c, batch.teacher),
            "kl": lambda c: theirs.DistillKLDivLoss(
                _Fixed("own"),
                student_temperature=TEMPERATURES["kl"],
                teacher_temperature=TEACHER_TEMPERATURE,
            )(c, batch.teacher),
        }[name](columns)
        ours = reduce_metrics(step.forward_backward(own, 0, 1.0), topology)["loss"]
        values[name] = (float(ours), float(loss))
    return values


def _with_labels(topology: ProcessTopology) -> list[float]:
    """The losses of a teacher, of labels, and of the teacher with half of that of labels."""
    batch, own = contrastive_share(NUM_QUESTIONS, NUM_NEGATIVES, 7), {"teacher_temperature": TEACHER_TEMPERATURE}
    cases: list[tuple[str, dict[str, Any]]] = [("kl", own), ("nll", {}), ("kl", {**own, "label_weight": 0.5})]
    steps = [_step(topology, name, **settings)[0] for name, settings in cases]
    steps[1].config = dataclasses.replace(steps[1].config, temperature=TEMPERATURES["kl"])
    return [float(reduce_metrics(step.forward_backward(batch, 0, 1.0), topology)["loss"]) for step in steps]


def test_labels_are_added_to_what_a_teacher_says() -> None:
    ((taught, labelled, both),) = run_on_ranks(_with_labels, 1)
    assert labelled > 0.1
    # all of it is softened
    assert both == pytest.approx(taught + 0.5 * labelled * TEMPERATURES["kl"] ** 2, rel=1e-6)
    with pytest.raises(ConfigError, match="--label-weight: --contrastive-loss nll"):
        ContrastiveConfig(label_weight=1.0)


def test_values_are_those_of_sentence_transformers() -> None:
    (values,) = run_on_ranks(_values, 1)
    assert values.keys() == TEMPERATURES.keys()
    for name, (ours, expected) in values.items():
        assert ours == pytest.approx(expected, rel=1e-5), name
        assert ours > 1e-3, name


def _matryoshka(topology: ProcessTopology) -> tuple[float, float]:
    """Ours and theirs."""
    batch = contrastive_share(NUM_QUESTIONS, 0, 7)
    batch = dataclasses.replace(batch, excluded=torch.zeros_like(torch.as_tensor(batch.excluded)))
    sizes, weights = (SIZE, 8, 5), (1.0, 0.5, 0.25)
    step, model = _step(topology, "nll", matryoshka_dims=sizes[1:], matryoshka_weights=weights[1:])
    with torch.no_grad():
        columns = [model.eval().encode_queries(batch.questions), model.encode_passages(batch.passages)]
    student = _Fixed("own")
    loss = theirs.MatryoshkaLoss(student, theirs.MultipleNegativesRankingLoss(student), sizes, weights)
    expected = float(loss([{"own": column} for column in columns], torch.zeros(0)))
    taught = reduce_metrics(step.forward_backward(batch, 0, 1.0), topology)
    evaluated = reduce_metrics(step.evaluate(batch), topology)
    assert evaluated["loss"] == pytest.approx(taught["loss"], rel=1e-5)
    assert evaluated["accuracy"] == taught["accuracy"]
    return taught["loss"], expected


def test_prefixes_learn_as_those_of_sentence_transformers() -> None:
    ((ours, expected),) = run_on_ranks(_matryoshka, 1)
    assert ours == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="--matryoshka-dims 33: vectors have 32 numbers"):
        ContrastiveConfig(matryoshka_dims=(33,)).prefix_weights(32)
    with pytest.raises(ConfigError, match="2 weights of 1 sizes"):
        ContrastiveConfig(matryoshka_dims=(3,), matryoshka_weights=(1.0, 1.0)).prefix_weights(32)
    assert ContrastiveConfig(matryoshka_dims=(3, 32), matryoshka_weights=(2.0, 0.5)).prefix_weights(32) == {
        32: 0.5,
        3: 2.0,
    }


def _frozen(topology: ProcessTopology) -> bool:
    """The tower of passages keeps its weights and drops nothing; with and without gradient caching."""
    batch = contrastive_share(NUM_QUESTIONS, 1, 7)
    for caching in (True, False):
        model = DualEncoder(
            dataclasses.replace(COSINES, encoder=tiny_dual_encoder_config(dropout=0.3).encoder), topology
        )
        model.freeze_passages()
        config = ContrastiveConfig(micro_batch_size=2, gradient_caching=caching)
        ContrastiveStep(model, config, topology, 3).forward_backward(batch, 0, 1.0)
        assert all(p.grad is None for p in model.towers["passage"].parameters())
        assert all(p.grad is not None for p in model.towers["query"].parameters())
        assert model.train().towers["query"].training
        assert not model.towers["passage"].training
    return True


def test_a_frozen_tower_keeps_its_weights() -> None:
    assert run_on_ranks(_frozen, 1) == [True]


def _refused(topology: ProcessTopology) -> list[str]:
    shared = DualEncoder(tiny_dual_encoder_config(shared=True), topology)
    batch = contrastive_share(NUM_QUESTIONS, 0, 7)
    cosines = ContrastiveConfig(contrastive_loss="contrastive", retriever_score_scaling=False)
    taught = ContrastiveConfig(contrastive_loss="kl")
    messages = []
    for call in (
        shared.freeze_passages,
        lambda: ContrastiveStep(shared, ContrastiveConfig(contrastive_loss="gist"), topology, 3),
        lambda: ContrastiveStep(shared, ContrastiveConfig(contrastive_loss="contrastive"), topology, 3),
        lambda: ContrastiveStep(DualEncoder(COSINES, topology), cosines, topology, 3).evaluate(batch),
        lambda: ContrastiveStep(shared, taught, topology, 3).evaluate(dataclasses.replace(batch, teacher=None)),
        lambda: ContrastiveStep(shared, taught, topology, 3).evaluate(batch),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        messages.append(str(caught.value))
    return messages


def test_what_cannot_be_is_refused() -> None:
    ((shared, guide, cosines, negatives, teacher, alone),) = run_on_ranks(_refused, 1)
    assert "--no-biencoder-shared-query-context-model" in shared
    assert "gist needs a guide" in guide
    assert "give --normalize-embeddings" in cosines
    assert "--num-hard-negatives above 0" in negatives
    assert "megatron-retrieval score writes" in teacher
    assert "kl compares the passages of a question" in alone
