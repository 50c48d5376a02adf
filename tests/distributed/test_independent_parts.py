"""Strategies of Lawton et al. that train retriever or reader alone: what learns, from what, and both together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from end_to_end_setting import SHAPE, Setting, write_inputs
from torch import Tensor

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.fusion_reader import FUSION_READER
from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.examples.retrieved_fusion import RetrievedTexts
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig, FusionLayout
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.end_to_end import FreezeConfig
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.runs import END_TO_END, FINETUNE, train
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_starts import write_starts
from megatron_retrieval.training.steps.readings import FusionReadings
from megatron_retrieval.types.search import FILLER_ROW

QUESTIONS = {f"w{n * 6} w{n * 3 + 1}": [f"w{n * 5 + 2}", "w1 w2 w3"] for n in range(5)}


def _setting(topology: ProcessTopology, folder: str) -> tuple[Setting, FusionReadings]:
    reader = BertSeq2Seq(BertSeq2SeqConfig(**SHAPE), topology, start_id=2, end_id=3, seed=2)
    frozen = FreezeConfig(freeze_query_encoder=True, freeze_passage_encoder=True)
    setting = Setting(topology, Path(folder), reader, 3, frozen)
    layout = FusionLayout(FusionFormatConfig(question_seq_length=8, reader_seq_length=24), setting.tokenizer)
    texts = RetrievedTexts(setting.evidence, layout, setting.tokenizer, max_answer_length=8)
    return setting, FusionReadings(FusionReader(reader), texts, topology)


def _priors(setting: Setting, batch: AskedBatch, rows: Tensor) -> Tensor:
    """[n, K] log p(z | q), by the vectors of the index."""
    with torch.no_grad():
        queries = setting.model.retriever.encode_queries(batch.retriever_queries)
    scores = torch.einsum("nd,nkd->nk", queries, setting.search.stored_vectors(rows)) / SHAPE["hidden_size"] ** 0.5
    return scores.masked_fill(rows == FILLER_ROW, -torch.inf).log_softmax(1)


def _frozen_towers(topology: ProcessTopology, folder: str) -> dict[str, Any]:
    """Gradients of a step with both towers frozen, and of the likelihoods by their posterior; p(z | q) before and after
    the reader has changed."""
    setting, side = _setting(topology, folder)
    step = setting.step(side, "individual-topk")["gradients"]
    setting, side = _setting(topology, folder)
    batch = setting.batch()
    rows = setting.search.to_read(setting.search.candidates(batch)).rows.cpu()
    before, likelihoods = _priors(setting, batch, rows), side.reading(batch, rows).each()
    posterior = (before + likelihoods).softmax(1).detach()
    likelihoods = likelihoods.masked_fill(rows == FILLER_ROW, 0)
    gradients = setting.dense_step(-(posterior * likelihoods).sum() / len(batch))["gradients"]
    with torch.no_grad():
        for parameter in setting.model.reader.parameters():
            parameter += 0.1
    return {"step": step, "expected": gradients, "priors": [before, _priors(setting, batch, rows)]}


def test_with_frozen_towers_the_reader_learns_by_the_posterior(tmp_path: Path) -> None:
    """grad = sum_z rho(z) grad log p(a | q, z), and p(z | q) is constant."""
    (found,) = run_on_ranks(_frozen_towers, 1, str(write_inputs(tmp_path, QUESTIONS)))
    learned = {name: gradient for name, gradient in found["step"].items() if gradient.abs().max() > 0}
    assert set(learned) == {name for name, gradient in found["expected"].items() if gradient.abs().max() > 0}
    assert learned
    for name, gradient in learned.items():
        torch.testing.assert_close(gradient, found["expected"][name], rtol=1e-4, atol=1e-6)
    assert torch.equal(*found["priors"])


SHORT = (
    "--train-iters 2 --global-batch-size 4 --lr-warmup-fraction 0 --no-tensorboard --hidden-dropout 0 "
    "--attention-dropout 0"
).split()
ASKED = "--num-passages 4 --max-answer-length 4 --objective rag-token --embedding-dtype float32".split()


def _weights(topology: ProcessTopology, folder: str) -> dict[str, dict[str, Tensor]]:
    root = Path(folder)
    places = {
        "start": (root / "retriever", root / "fusion"),
        "apart": (root / "embedder", root / "generator" / "reader"),
        "generator": (root / "generator" / "retriever", root / "generator" / "reader"),
        "together": (root / "together" / "retriever", root / "together" / "reader"),
    }
    found = {}
    for name, (retriever, reader) in places.items():
        models = {
            "retriever": DUAL_ENCODER.load(retriever, topology).model,
            "reader": FUSION_READER.load(reader, topology).model,
        }
        found[name] = {
            f"{part}.{key}": value.detach().clone()
            for part, model in models.items()
            for key, value in model.named_parameters()
        }
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """An embedder trained from labels, a generator beside frozen towers, and a run that starts from both and takes
    steps of length 0."""
    folder = write_starts(tmp_path_factory.mktemp("independent"))
    data, evidence = ["--train-data", folder / "biencoder.json"], ["--evidence", folder / "evidence"]

    def saved(name: str, *words: object) -> list[str]:
        return [str(word) for word in (*data, *words, "--output-dir", folder / f"{name}-log", "--save", folder / name)]

    train(FINETUNE, saved("embedder", *SHORT, "--pretrained-checkpoint", folder / "retriever", "--lr", "1e-2"))
    towers = ("--freeze-query-encoder", "--freeze-passage-encoder")
    starts = ("--retriever", folder / "retriever", "--reader", folder / "fusion")
    train(END_TO_END, saved("generator", *SHORT, *ASKED, *evidence, *starts, *towers, "--lr", "1e-2"))
    both = ("--retriever", folder / "embedder", "--reader", folder / "generator" / "reader")
    train(END_TO_END, saved("together", *SHORT, *ASKED, *evidence, *both, "--lr", "0"))
    (found,) = run_on_ranks(_weights, 1, str(folder))
    return found


def _differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """The parts in which something differs by a bit."""
    assert one.keys() == other.keys()
    return {name.partition(".")[0] for name, value in one.items() if not torch.equal(value, other[name])}


def test_independent_is_both_checkpoints_to_the_bit(weights: dict[str, dict[str, Tensor]]) -> None:
    assert _differ(weights["start"], weights["apart"]) == {"retriever", "reader"}
    assert _differ(weights["start"], weights["generator"]) == {"reader"}
    assert not _differ(weights["apart"], weights["together"])
