"""BM25 on a sample of BEIR: ids come out as they went in, and pytrec_eval gives our figures from the run file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.files.trec import read_qrels
from megatron_retrieval.evaluation.judged_metrics import judged_metrics, judged_values
from megatron_retrieval.evaluation.rank_metrics import UNKNOWN, RetrievalRanks
from megatron_retrieval.evaluation.retrieval_results import Retrieved, write_trec_run
from megatron_retrieval.index.bm25 import LexicalConfig, LexicalIndex, build_lexical_index
from megatron_retrieval.types.questions import Passage

DATA = Path(os.environ.get("MEGATRON_RETRIEVAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
SAMPLE = DATA / "beir_dbpedia_sample"


class _Evidence:
    def __init__(self, passages: list[Passage]) -> None:
        self._passages = passages

    def passages(self, rows: np.ndarray) -> list[Passage]:
        return [self._passages[row] for row in rows]


@pytest.mark.real_data
def test_bm25_by_judgements(tmp_path: Path) -> None:
    if not SAMPLE.exists():
        pytest.skip(f"no BEIR sample in {DATA}")
    passages = [passage for _, passage in read_passages(SAMPLE / "corpus.jsonl.gz")]
    questions, qrels = list(read_questions(SAMPLE / "queries.jsonl")), read_qrels(SAMPLE / "qrels" / "test.tsv")
    build_lexical_index(passages, len(passages), LexicalConfig(), "sample", tmp_path / "bm25")
    found = LexicalIndex(tmp_path / "bm25").search([question.text for question in questions], 100)
    rows = found.rows.numpy()
    ranked = [[passages[row].id for row in best if row >= 0] for best in rows]
    metrics = judged_metrics(judged_values([question.id for question in questions], ranked, qrels, [10, 100]))
    assert metrics["num_judged_questions"] == 40
    expected = {"ndcg@10": 0.3612, "map": 0.3783, "mrr@100": 0.58, "recall@100": 0.8442}
    assert {name: round(metrics[name], 4) for name in expected} == expected

    unknown = RetrievalRanks(*2 * [np.full(len(questions), UNKNOWN)])
    retrieved = Retrieved(rows, found.scores.numpy(), rows < 0, unknown)
    write_trec_run(tmp_path / "run.trec", questions, retrieved, _Evidence(passages), "tag")
    with (tmp_path / "run.trec").open() as file:
        run = pytrec_eval.parse_run(file)
    scores = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map"}).evaluate(run).values()
    for name, theirs in (("ndcg@10", "ndcg_cut_10"), ("map", "map")):
        assert metrics[name] == pytest.approx(np.mean([score[theirs] for score in scores]), abs=1e-12)
