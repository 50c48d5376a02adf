"""What end-to-end training is made of: parts of checkpoints, frozen parts, rates of their own, re-ranked candidates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from end_to_end_setting import SHAPE, TEXT_FORMAT, Setting, all_rows, write_inputs

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.checkpoint.store.reader import load_weights
from megatron_retrieval.checkpoint.store.writer import ModelPart, save_checkpoint
from megatron_retrieval.data.examples.retrieved_fusion import RetrievedTexts
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig, FusionLayout
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.errors import CheckpointError, ConfigError
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.end_to_end import EndToEndModel, FreezeConfig
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig, FusionReader
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.training.steps.end_to_end_step import EndToEndStep, EndToEndStepConfig
from megatron_retrieval.training.steps.passage_search import PassageSearch, TopkConfig, with_null_passage
from megatron_retrieval.training.steps.readings import FusionReadings
from megatron_retrieval.types.search import FILLER_ROW, NULL_ROW, SearchResult

QUESTIONS = {f"w{n * 6} w{n * 3 + 1}": [f"w{n * 5 + 2}"] for n in range(5)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("parts"), QUESTIONS)


def _setting(
    topology: ProcessTopology,
    folder: str,
    freeze: FreezeConfig | None = None,
    dropout: float = 0.0,
    *,
    null_passage: bool = False,
) -> Setting:
    shape = {**SHAPE, "hidden_dropout": dropout, "attention_dropout": dropout}
    reader = BertSeq2Seq(BertSeq2SeqConfig(**shape), topology, start_id=2, end_id=3, seed=2)
    return Setting(topology, Path(folder), reader, 3, freeze, shape, null_passage=null_passage)


def _save(topology: ProcessTopology, folder: str, output: str) -> dict[str, str]:
    """A checkpoint of a model with a part; its fingerprints."""
    setting = _setting(topology, folder)
    vocabulary = setting.tokenizer
    config = DUAL_ENCODER.config(setting.model.retriever.config, vocabulary, TEXT_FORMAT)
    parts = {"retriever": ModelPart(DUAL_ENCODER.name, lambda: config, vocabulary.assets())}
    path = save_checkpoint(
        output, setting.model, topology, kind="whole", config={}, assets={}, iteration=7, parts=parts
    )
    return {"whole": read_manifest(path).fingerprint, "part": DUAL_ENCODER.describe(path / "retriever").fingerprint}


def _load(topology: ProcessTopology, folder: str, output: str) -> dict[str, bool]:
    """Whether the whole and the part come back as they were."""
    setting = _setting(topology, folder)
    wanted = {name: p.detach().clone() for name, p in setting.model.named_parameters()}
    with torch.no_grad():
        for parameter in setting.model.parameters():
            parameter.zero_()
    path = resolve_checkpoint(output)
    load_weights(path, read_manifest(path), setting.model, topology)
    part = DUAL_ENCODER.load(Path(output) / "retriever", topology).model
    return {
        "whole": all(torch.equal(p, wanted[name]) for name, p in setting.model.named_parameters()),
        "part": all(torch.equal(p, wanted[f"retriever.{name}"]) for name, p in part.named_parameters()),
    }


def test_a_part_is_a_checkpoint_by_itself(folder: Path, tmp_path: Path) -> None:
    """Saved at TP 2 and at one rank alike; found in the newest checkpoint by its name."""
    output = tmp_path / "checkpoints"
    sharded = run_on_ranks(_save, 2, str(folder), str(output), tensor_model_parallel_size=2)
    single = run_on_ranks(_save, 1, str(folder), str(tmp_path / "single"))
    assert sharded == [single[0], single[0]]
    assert run_on_ranks(_load, 1, str(folder), str(output)) == [{"whole": True, "part": True}]
    assert resolve_checkpoint(output / "retriever") == output / "iter_0000007" / "retriever"
    with pytest.raises(CheckpointError, match=r"has no part 'reader'; its parts are retriever\."):
        resolve_checkpoint(output / "reader")


def _what_moves(topology: ProcessTopology, folder: str, freeze: dict[str, bool], rates: dict[str, float]) -> set[str]:
    """The parts that a step changes; a parameter of each part is looked at. Those that are frozen have no dropout."""
    setting = _setting(topology, folder, FreezeConfig(**freeze))
    model = DataParallelModel(setting.model, topology)
    settings = OptimizerConfig(lr=0.1, weight_decay=0.1)
    optimizer = Optimizer(model, settings, PrecisionConfig(), topology, rates)
    before = {name: p.detach().clone() for name, p in setting.model.named_parameters()}
    model.zero_gradients()
    named: Any = [(name, p) for name, p in setting.model.named_parameters() if p.requires_grad]
    for _, parameter in named:
        parameter.main_grad.fill_(1.0)
    model.reduce_gradients()
    optimizer.step(0.1)
    moved = {name for name, p in setting.model.named_parameters() if not torch.equal(p, before[name])}
    setting.model.train()
    for part, flag in ((QUERY, "query_encoder"), (PASSAGE, "passage_encoder"), ("reader", "reader")):
        assert setting.model.get_submodule(part).training != freeze.get(f"freeze_{flag}", False)
    return {"score_weight" if name == "score_weight" else ".".join(name.split(".")[:3]) for name in moved}


QUERY, PASSAGE = "retriever.towers.query", "retriever.towers.passage"


@pytest.mark.parametrize(
    ("freeze", "rates", "still"),
    [
        ({}, {}, set()),
        ({"freeze_query_encoder": True}, {}, {QUERY}),
        ({"freeze_passage_encoder": True}, {}, {PASSAGE}),
        ({"freeze_query_encoder": True, "freeze_passage_encoder": True}, {}, {QUERY, PASSAGE}),
        ({"freeze_reader": True}, {}, {"reader"}),
        ({}, {"retriever.": 0.0}, {QUERY, PASSAGE}),
        ({}, {"reader.": 0.0}, {"reader"}),
    ],
)
def test_what_is_frozen_or_has_no_rate_stays(
    folder: Path, freeze: dict[str, bool], rates: dict[str, float], still: set[str]
) -> None:
    (moved,) = run_on_ranks(_moved, 1, str(folder), freeze, rates)
    parts = {name if name.startswith(("retriever", "score")) else "reader" for name in moved}
    assert parts == {QUERY, PASSAGE, "reader", "score_weight"} - still


def _moved(topology: ProcessTopology, *args: Any) -> list[str]:
    return sorted(_what_moves(topology, *args))


def _shared(topology: ProcessTopology, folder: str) -> str:
    """What is said where one of two towers is to be frozen that are one."""
    setting = _setting(topology, folder)
    model = setting.model.retriever
    object.__setattr__(model.config, "biencoder_shared_query_context_model", True)
    try:
        EndToEndModel(model, setting.model.reader, FreezeConfig(freeze_query_encoder=True))
    except ConfigError as error:
        return str(error)
    return ""


def test_half_of_a_shared_encoder_cannot_be_frozen(folder: Path) -> None:
    (message,) = run_on_ranks(_shared, 1, str(folder))
    assert "questions and passages share one encoder" in message


def _found(
    topology: ProcessTopology, folder: str, num_passages: int, num_candidates: int | None, dropout: float = 0.0
) -> dict[str, Any]:
    """What is read where the index is stale: made with the passage encoder's first weights."""
    setting = _setting(topology, folder, dropout=dropout)
    model = setting.model.retriever.train()
    with torch.no_grad():
        for parameter in model.towers["passage"].parameters():
            parameter.mul_(1.5)
        batch = setting.batch()
        settings = TopkConfig(num_passages=num_passages, num_candidates=num_candidates)
        search = PassageSearch(settings, model, setting.evidence, TEXT_FORMAT, topology, encode_batch_size=3)
        search.index = setting.search.index
        found = search.find(batch)
        assert model.training
        others = search.find(dataclasses.replace(batch, excluded_rows=found.rows[:, :1]))
        model.eval()
        fresh = model.encode_queries(batch.retriever_queries) @ model.encode_passages(search.tokens(all_rows())).T
        order = fresh.sort(dim=1, descending=True, stable=True)
    best, scores = order.indices[:, :num_passages], order.values[:, :num_passages]
    return {"rows": found.rows, "scores": found.scores, "best": best, "fresh": scores, "others": others.rows}


def test_candidates_are_ranked_by_the_encoder_of_the_moment(folder: Path) -> None:
    """All of the evidence as candidates: the best by fresh scores, whatever the index says."""
    (found,) = run_on_ranks(_found, 1, str(folder), 2, 6)
    assert torch.equal(found["rows"], found["best"])
    torch.testing.assert_close(found["scores"], found["fresh"])
    assert torch.equal(found["others"][:, 0], found["best"][:, 1]), "without the first, which is excluded"
    (stale,) = run_on_ranks(_found, 1, str(folder), 2, None, 0.5)
    assert not torch.equal(stale["rows"], stale["best"])


def test_fillers_come_last_and_nothing_is_dropped(folder: Path) -> None:
    """More candidates than passages, and a model in training."""
    (found,) = run_on_ranks(_found, 1, str(folder), 7, 8, 0.5)
    assert torch.equal(found["rows"][:, :6], found["best"])
    torch.testing.assert_close(found["scores"][:, :6], found["fresh"])
    assert (found["rows"][:, 6] == -1).all()


def test_the_null_passage_stands_between_passages_and_fillers() -> None:
    found = SearchResult(torch.tensor([[2.0, 1.0], [3.0, -torch.inf]]), torch.tensor([[7, 0], [4, FILLER_ROW]]))
    with_null = with_null_passage(found)
    assert with_null.rows.tolist() == [[7, 0, NULL_ROW], [4, NULL_ROW, FILLER_ROW]]
    assert with_null.scores.nan_to_num(99.0, neginf=-torch.inf).tolist() == [[2.0, 1.0, 99.0], [3.0, 99.0, -torch.inf]]


def test_the_null_passage_has_neither_title_nor_text(folder: Path) -> None:
    """Beside a passage: [CLS] [SEP] [SEP], or [CLS] [SEP] where nothing parts title and text; its reader reads the
    question alone, and further columns stay fillers."""
    evidence = EvidenceStore(folder / "evidence")
    for text_format, empty in (("title-sep-text", [2, 3, 3]), ("title-text", [2, 3])):
        layout = dataclasses.replace(TEXT_FORMAT, passage_format=text_format)
        tokens = evidence.tokens([NULL_ROW, 1], layout)
        assert tokens.ids[0, : int(tokens.lengths[0])].tolist() == empty
        alone = evidence.tokens([1], layout)
        assert torch.equal(tokens.ids[1:, : alone.ids.size(1)], alone.ids)
    settings = FusionFormatConfig(question_seq_length=8, reader_seq_length=30)
    texts = RetrievedTexts(
        evidence, FusionLayout(settings, evidence.vocabulary), evidence.vocabulary, max_answer_length=6
    )
    asked = Ragged.from_sequences([[8, 9], [10]], np.int32)
    read, is_real = texts.texts(asked, np.array([[1, NULL_ROW, FILLER_ROW], [NULL_ROW, FILLER_ROW, FILLER_ROW]]))
    (without, _), (found, _) = texts.texts(asked, np.empty((2, 0), np.int64)), texts.texts(asked, np.array([[1], [1]]))
    assert is_real.tolist() == [[True, True, False], [True, False, False]]
    for row, wanted, place in ((0, found, 0), (1, without, 0), (3, without, 1)):
        length = int(wanted.lengths[place])
        assert int(read.lengths[row]) == length
        assert torch.equal(read.ids[row, :length], wanted.ids[place, :length])


def _evaluated(topology: ProcessTopology, folder: str) -> list[dict[str, Any]]:
    """The numbers of an evaluation, with dropout twice and without, then the gradients of two loss scales."""
    found: list[dict[str, Any]] = []
    for dropout in (0.5, 0.0):
        setting = _setting(topology, folder, dropout=dropout)
        layout = FusionLayout(FusionFormatConfig(question_seq_length=8, reader_seq_length=30), setting.tokenizer)
        texts = RetrievedTexts(setting.evidence, layout, setting.tokenizer, max_answer_length=6)
        readings = FusionReadings(FusionReader(setting.model.reader, FusionEncodeConfig()), texts, topology)
        step = EndToEndStep(setting.model, readings, setting.search, EndToEndStepConfig(), topology, seed=3)
        for _ in range(2 if dropout else 1):
            found.append({name: float(metric.part) for name, metric in step.evaluate(setting.batch()).items()})
    setting.search.config, scores = TopkConfig(num_passages=7), setting.search.fresh_scores
    # those of fillers mean nothing
    setting.search.fresh_scores = lambda vectors, rows: scores(vectors, rows).masked_fill(rows < 0, 99.0)  # type: ignore[method-assign]
    assert float(step.evaluate(setting.batch())["best_passage_changed"].part) == 0, "the index is that of the moment"
    for scale in (1.0, 1024.0):
        setting.model.zero_grad()
        step.forward_backward(setting.batch(), 0, scale)
        found.append({n: p.grad.clone() for n, p in setting.model.named_parameters() if p.grad is not None})
    return found


def test_evaluation_has_no_dropout_and_training_scales_its_gradients(folder: Path) -> None:
    ((first, second, still, gradients, scaled),) = run_on_ranks(_evaluated, 1, str(folder))
    assert first == second == pytest.approx(still, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(scaled[name], gradient * 1024, rtol=1e-4, atol=1e-4)


def _frozen_step(topology: ProcessTopology, folder: str, frozen: bool) -> dict[str, Any]:
    """A step with a passage encoder that is not trained: with vectors of the index, where only the null passage is
    encoded, and once, or with fresh ones."""
    freeze = FreezeConfig(freeze_passage_encoder=True)
    setting = _setting(topology, folder, freeze, null_passage=True)
    setting.search.config = dataclasses.replace(setting.search.config, num_candidates=4)
    setting.search.frozen = frozen
    encoded: list[int] = []
    setting.model.retriever.towers["passage"].register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    layout = FusionLayout(FusionFormatConfig(question_seq_length=8, reader_seq_length=30), setting.tokenizer)
    texts = RetrievedTexts(setting.evidence, layout, setting.tokenizer, max_answer_length=6)
    readings = FusionReadings(FusionReader(setting.model.reader, FusionEncodeConfig()), texts, topology)
    found = setting.step(readings, "individual-topk")
    assert encoded == [1] if frozen else len(encoded) > 1
    return found


def test_a_frozen_passage_encoder_is_not_asked_again(folder: Path) -> None:
    """Passages' vectors come from the index, wherever it holds them; the gradients are those of fresh ones."""
    (wanted,) = run_on_ranks(_frozen_step, 1, str(folder), False)
    for num_ranks, tp_size in ((2, 1), (2, 2)):
        found = run_on_ranks(_frozen_step, num_ranks, str(folder), True, tensor_model_parallel_size=tp_size)[0]
        for part in ("metrics", "evaluated"):
            assert found[part]["loss"] == pytest.approx(wanted[part]["loss"], rel=1e-5)
            assert found[part]["null_prior"] == pytest.approx(wanted[part]["null_prior"], rel=1e-5)
        assert not any(name.startswith("retriever.towers.passage") for name in found["gradients"])
        assert found["gradients"].keys() == wanted["gradients"].keys()
        for name, gradient in wanted["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6)


def _ranks_find(topology: ProcessTopology, folder: str) -> list[list[int]]:
    rows: list[list[int]] = _setting(topology, folder).search.find(_setting(topology, folder).batch()).rows.tolist()
    return rows


def test_tensor_parallel_neighbours_read_the_same(folder: Path) -> None:
    (single,) = run_on_ranks(_ranks_find, 1, str(folder))
    assert run_on_ranks(_ranks_find, 2, str(folder), tensor_model_parallel_size=2) == [single, single]
    first, second = run_on_ranks(_ranks_find, 2, str(folder))
    assert first + second == single
