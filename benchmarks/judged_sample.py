"""Metrics of `judged_sample.sh` beside those of others: pytrec_eval over the run files, and, for the dense run, over
what sentence-transformers finds with its own question vectors among our passage vectors."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytrec_eval

from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.files.trec import Qrels, read_qrels
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.reports.tables import text_table

#: our name -> trec_eval's
MEASURES = {"ndcg@10": "ndcg_cut_10", "map": "map", "mrr@100": "recip_rank", "recall@100": "recall_100"}
Run = dict[str, dict[str, float]]


@dataclass(kw_only=True, frozen=True)
class JudgedSampleConfig:
    """Compare metrics with those of pytrec_eval and sentence-transformers."""

    folder: Path
    """Output folder of `judged_sample.sh`."""
    model: Path
    """Folder of the sentence-transformers model."""
    questions: Path
    """Questions of the data set."""
    qrels: Path
    """Judgements of the data set."""


def main(config: JudgedSampleConfig) -> None:
    qrels, rows = read_qrels(config.qrels), []
    for name in ("words", "dense", "both"):
        ours = json.loads((config.folder / name / "metrics.json").read_text())
        rows.append([name, *(f"{ours[measure]:.4f}" for measure in MEASURES)])
        with (config.folder / name / "run.trec").open() as file:
            rows.append(["  pytrec_eval of run.trec", *_figures(pytrec_eval.parse_run(file), qrels)])
    rows.append(["sentence-transformers", *_figures(_found_by_sentence_transformers(config), qrels)])
    sys.stdout.write(text_table(["", *MEASURES], rows) + "\n")


def _figures(run: Run, qrels: Qrels) -> list[str]:
    scores = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map", "recip_rank", "recall.100"}).evaluate(run)
    return [f"{sum(score[name] for score in scores.values()) / len(scores):.4f}" for name in MEASURES.values()]


def _found_by_sentence_transformers(config: JudgedSampleConfig) -> Run:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import dot_score, semantic_search

    evidence, vectors = EvidenceStore(config.folder / "evidence"), EmbeddingStore(config.folder / "embeddings")
    questions = list(read_questions(config.questions))
    encoder = SentenceTransformer(str(config.model), device="cpu")
    asked = encoder.encode([question.text for question in questions], convert_to_tensor=True)
    hits = semantic_search(asked, vectors.vectors(0, len(vectors)), top_k=100, score_function=dot_score)
    return {
        question.id: {evidence.passage(int(hit["corpus_id"])).id: float(hit["score"]) for hit in found}
        for question, found in zip(questions, hits, strict=True)
    }


if __name__ == "__main__":
    run_program(JudgedSampleConfig, main)
