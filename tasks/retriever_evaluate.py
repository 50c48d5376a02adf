"""Evaluate a retriever: how often do the first k passages hold an answer?"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.search import SearchConfig, SearchSession, open_search
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.parser import write_config
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig, read_questions
from megatron_retrieval.evaluation.answer_matching import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.evaluation.retrieval_results import (
    METRICS,
    RANKS,
    RESULTS,
    TREC_RUN,
    Retrieved,
    recorded,
    retrieval_metrics,
    write_dpr_results,
    write_ranks,
    write_trec_run,
)
from megatron_retrieval.parallel.launch import run_distributed
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.reports.tables import rate_cells, text_table
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.training.run_record import RunRecord
from megatron_retrieval.types.questions import Question
from megatron_retrieval.utils.files import write_json


@dataclass(kw_only=True, frozen=True)
class RetrieverEvaluateConfig(Checked):
    """Evaluate a retriever by answer recall and, where gold is known, gold-passage recall."""

    search: SearchConfig
    """What is searched."""
    questions: Path
    """DPR .qa.csv, JSON lines, or DPR biencoder JSON (which also names gold passages); plain or gzip."""
    asked: AskedQuestionsConfig = field(default_factory=AskedQuestionsConfig)
    """Which of them are asked, and how."""
    output_dir: Path
    """Folder for metrics.json, ranks.jsonl, results.json (DPR's format), run.trec, config.yaml and run_record.json."""
    topk: tuple[PositiveInt, ...] = (1, 5, 20, 100)
    """Depths at which recall is measured; the greatest is the number of passages retrieved."""
    write_results: bool = True
    """Write the retrieved passages (results.json, run.trec) as well as the figures."""
    matching: AnswerMatchConfig = field(default_factory=AnswerMatchConfig)
    """When a passage holds an answer."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How questions are encoded."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""


def main(config: RetrieverEvaluateConfig, topology: ProcessTopology) -> None:
    record = RunRecord(config, topology.world_size)
    questions = list(read_questions(config.questions, config.asked))
    session = open_search(config.search, config.encode, topology)
    matcher = AnswerMatcher(config.matching)
    retrieved = session.evaluate(
        questions, matcher, topology, depth=max(config.topk), micro_batch_size=config.encode.micro_batch_size
    )
    if topology.is_main:
        topk = sorted(set(config.topk))
        metrics = retrieval_metrics(retrieved.ranks, topk) | _protocol(config, session, matcher)
        _write(config, session, questions, retrieved, metrics)
        record.write(config.output_dir)
        sys.stdout.write(_table(metrics, topk) + "\n")


def _protocol(config: RetrieverEvaluateConfig, session: SearchSession, matcher: AnswerMatcher) -> dict[str, Any]:
    """The switches that the figures depend on."""
    return {
        "questions": str(config.questions),
        **recorded(config.matching, config.asked),
        "num_bad_patterns": matcher.num_bad_patterns,
        "num_passages": len(session.evidence),
        **session.protocol(),
    }


def _write(
    config: RetrieverEvaluateConfig,
    session: SearchSession,
    questions: list[Question],
    retrieved: Retrieved,
    metrics: dict[str, Any],
) -> None:
    folder = config.output_dir
    write_json(folder / METRICS, metrics)
    write_ranks(folder / RANKS, questions, retrieved.ranks)
    write_config(config, folder / "config.yaml")
    if config.write_results:
        write_dpr_results(folder / RESULTS, questions, retrieved, session.evidence)
        write_trec_run(folder / TREC_RUN, questions, retrieved, session.evidence, tag="megatron-retrieval")


def _table(metrics: dict[str, Any], topk: list[int]) -> str:
    """Recall in percent with its 95 % interval."""
    kinds = [("answer", "")] + ([("gold passage", "gold_")] if metrics["num_gold_questions"] else [])
    rows = [[f"{name} recall@{k}", *rate_cells(metrics, f"{prefix}recall@{k}")] for name, prefix in kinds for k in topk]
    counts = f"{metrics['num_questions']:,} questions, {metrics['num_passages']:,} passages"
    return f"{counts}\n\n{text_table(['', '%', '95 % interval'], rows)}"


if __name__ == "__main__":
    run_distributed(RetrieverEvaluateConfig, main)
