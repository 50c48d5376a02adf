"""Result files have the shapes that other programs read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_retrieval.applications import retriever_evaluation
from megatron_retrieval.applications.retriever_evaluation import RetrieverEvaluateConfig
from megatron_retrieval.applications.search import SearchConfig
from megatron_retrieval.data.files.trec import read_run
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import DataError
from megatron_retrieval.evaluation.judged_metrics import JudgementsConfig, judged_metrics, judged_values
from megatron_retrieval.evaluation.rank_metrics import NOT_FOUND, UNKNOWN, RetrievalRanks
from megatron_retrieval.evaluation.retrieval_results import (
    Retrieved,
    read_ranks,
    write_dpr_results,
    write_ranks,
    write_trec_run,
)
from megatron_retrieval.evaluation.retriever_task import without_own_passages
from megatron_retrieval.index.bm25 import LexicalConfig, build_lexical_index
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.testing.tiny import write_tiny_evidence
from megatron_retrieval.types.questions import Passage, Question


class _Evidence:
    def passages(self, rows: Sequence[int]) -> list[Passage]:
        return [Passage(f"<p:{row}>", f"Title {row}", f"Text\t“{row}”") for row in rows]


QUESTIONS = [Question("q1", "who?", ("a", "b")), Question("q2", "où?", ())]
RETRIEVED = Retrieved(
    rows=np.array([[4, 2], [7, -1]]),
    scores=np.array([[1.5, 0.1], [3.0, -np.inf]], np.float32),
    has_answer=np.array([[False, True], [False, False]]),
    ranks=RetrievalRanks(np.array([2, NOT_FOUND]), np.array([1, UNKNOWN])),
)


def test_dpr_results(tmp_path: Path) -> None:
    write_dpr_results(tmp_path / "results.json", QUESTIONS, RETRIEVED, _Evidence())
    first, second = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (first["id"], first["question"], first["answers"]) == ("q1", "who?", ["a", "b"])
    assert first["ctxs"] == [
        {"id": "<p:4>", "title": "Title 4", "text": "Text\t“4”", "score": "1.5", "has_answer": False},
        {"id": "<p:2>", "title": "Title 2", "text": "Text\t“2”", "score": "0.1", "has_answer": True},
    ]
    assert [context["id"] for context in second["ctxs"]] == ["<p:7>"]


def test_trec_run_has_six_columns(tmp_path: Path) -> None:
    write_trec_run(tmp_path / "run.trec", QUESTIONS, RETRIEVED, _Evidence(), "tag")
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert lines == ["q1 Q0 <p:4> 1 1.5 tag", "q1 Q0 <p:2> 2 0.1 tag", "q2 Q0 <p:7> 1 3.0 tag"]
    spaced = [Question("q 1", "who?", ()), QUESTIONS[1]]
    with pytest.raises(DataError, match="the id 'q 1' holds white space"):
        write_trec_run(tmp_path / "spaced.trec", spaced, RETRIEVED, _Evidence(), "tag")
    assert not (tmp_path / "spaced.trec").exists()


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.0, -0.0, 1.5, 1e-30, -7.25]), min_size=1, max_size=6),
    grades=st.lists(st.integers(-1, 3), min_size=6, max_size=6),
)
def test_trec_eval_ranks_the_run_as_we_do(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float], grades: list[int]
) -> None:
    """Ties too: trec_eval orders them by ids backwards."""
    path = tmp_path_factory.getbasetemp() / "ties.trec"
    rows = np.arange(len(scores))[None]
    ordered = np.sort(np.array(scores, np.float32))[::-1][None]
    ranks = RetrievalRanks(np.array([UNKNOWN]), np.array([UNKNOWN]))
    write_trec_run(path, QUESTIONS[:1], Retrieved(rows, ordered, rows < 0, ranks), _Evidence(), "tag")
    with path.open() as file:
        run = pytrec_eval.parse_run(file)
    qrels = {"q1": {f"<p:{row}>": grade for row, grade in enumerate(grades)}, "q9": {"a": 1}}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.3", "map", "recip_rank", "P.3"}).evaluate(run)["q1"]
    (ranked,) = [[name for name, _ in found] for _, found in read_run(path)]
    assert ranked == [f"<p:{row}>" for row in range(len(scores))]
    ours = judged_values(["q1"], [ranked], qrels, [3, 100])
    names = {"ndcg@3": "ndcg_cut_3", "map": "map", "mrr@100": "recip_rank", "precision@3": "P_3"}
    assert {name: ours[name][0] for name in names} == {name: theirs[name_there] for name, name_there in names.items()}


def test_metrics_by_judgements_against_a_hand_count() -> None:
    qrels = {"a": {"x": 2, "y": 0, "z": 1}, "b": {"x": 1}, "c": {"y": 0}}
    values = judged_values(["a", "b", "none", "c"], [["y", "x", "new"], [], ["x"], ["c", "y"]], qrels, [1, 2, 3])
    gain = 2 / np.log2(3) / (2 + 1 / np.log2(3))  # x at rank 2; best: x, then z
    expected = {"ndcg@2": gain, "mrr@1": 0.0, "mrr@2": 0.5, "map": 0.25, "recall@2": 0.5, "precision@2": 0.5}
    assert {name: values[name][0] for name in expected} == pytest.approx(expected)
    assert values["success@1"].tolist()[:2] == [0.0, 0.0]
    assert values["unjudged@3"][0] == pytest.approx(1 / 3)
    assert np.isnan(values["map"]).tolist() == [False, False, True, False]
    metrics = judged_metrics(values)
    assert (metrics["num_judged_questions"], metrics["map"]) == (3, pytest.approx(0.25 / 3))
    low, high = metrics["map_ci95"]
    assert 0.0 <= low < 0.25 / 3 < high
    assert judged_values(["c"], [["c", "y"]], qrels, [1])["unjudged@1"][0] == 1


def test_a_passage_with_the_questions_own_id_takes_no_place(tmp_path: Path) -> None:
    evidence = EvidenceStore(write_tiny_evidence(tmp_path, 20))
    passages = list(evidence.passages(range(len(evidence))))
    build_lexical_index(passages, len(passages), LexicalConfig(), evidence.fingerprint, tmp_path / "bm25")
    asked = [{"_id": name, "text": "the box of key0 stands in the corner"} for name in ("1", "other")]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    judged = [f"{line['_id']} 0 {passage.id} 1\n" for line in asked for passage in passages if passage.id != "1"]
    (tmp_path / "qrels.txt").write_text("".join(judged))
    config = RetrieverEvaluateConfig(
        search=SearchConfig(evidence=tmp_path / "evidence", bm25_index=tmp_path / "bm25"),
        questions=tmp_path / "queries.jsonl",
        judgements=JudgementsConfig(qrels=tmp_path / "qrels.txt", ignore_identical_ids=True),
        output_dir=tmp_path / "run",
        topk=(10,),
    )
    with process_topology(ParallelConfig(device="cpu")) as topology:
        retriever_evaluation.main(config, topology)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["precision@10"] == (1 + 0.9) / 2
    own, other = ([name for name, _ in found] for _, found in read_run(tmp_path / "run" / "run.trec"))
    assert (len(own), len(other), other[0]) == (10, 10, "1")
    assert own[:9] == other[1:]


def test_ranks_without_the_questions_own_passage() -> None:
    class Evidence(_Evidence):
        def rows_of(self, ids: Sequence[str]) -> np.ndarray:
            return np.array([int(name) for name in ids])

    questions = [
        Question("4", "who?", ("a",), ("4", "2")),
        Question("7", "who?", ("a",), ("7",)),
        Question("9", "", (), ("1",)),
    ]
    hits = np.array([[True, False, True], [True, False, False], [False] * 3])
    ranks = RetrievalRanks(np.array([1, 1, UNKNOWN]), np.array([1, 1, 3]))
    rows = np.array([[4, 3, 2], [7, 5, -1], [3, 2, 1]])
    found = without_own_passages(questions, Retrieved(rows, -rows.astype(np.float32), hits, ranks), Evidence(), 2)
    assert found.rows.tolist() == [[3, 2], [5, -1], [3, 2]]
    assert found.scores[0].tolist() == [-3, -2]
    assert found.ranks.answer.tolist() == [2, NOT_FOUND, UNKNOWN]
    assert found.ranks.gold.tolist() == [2, UNKNOWN, NOT_FOUND]


def test_ranks_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "ranks.jsonl"
    write_ranks(path, QUESTIONS, RETRIEVED.ranks, {"map": np.array([0.1, np.nan])})
    questions, ranks, values = read_ranks(path)
    np.testing.assert_array_equal(values["map"], [0.1, np.nan])
    assert questions == ["q1\twho?", "q2\toù?"]
    assert ranks.answer.tolist() == [2, NOT_FOUND]
    assert ranks.gold.tolist() == [1, UNKNOWN]
    path.write_text(path.read_text() + '{"id": "cut of')
    with pytest.raises(DataError, match=r"ranks.jsonl:3: not a line of ranks"):
        read_ranks(path)
