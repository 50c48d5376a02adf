"""Evaluate a retriever: do the first k passages hold an answer, and are they the relevant ones?"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.search import SearchConfig, SearchSession, open_search
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.parser import write_config
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig, read_questions, require_distinct_ids
from megatron_retrieval.data.files.trec import Qrels
from megatron_retrieval.errors import DataError
from megatron_retrieval.evaluation.answer_matching import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.evaluation.benchmark_files import write_benchmark_results
from megatron_retrieval.evaluation.judged_metrics import (
    PUBLISHED_DEPTH,
    JudgementsConfig,
    Values,
    judged_metrics,
    judged_values,
)
from megatron_retrieval.evaluation.retrieval_results import (
    METRICS,
    RANKS,
    RESULTS,
    TREC_RUN,
    Retrieved,
    found_passages,
    recorded,
    retrieval_metrics,
    write_dpr_results,
    write_ranks,
    write_trec_run,
)
from megatron_retrieval.evaluation.retriever_task import without_own_passages
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.reports.tables import rate_cells, text_table
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.training.run_record import RunRecord
from megatron_retrieval.types.questions import Question
from megatron_retrieval.utils.files import write_json
from megatron_retrieval.utils.logging import get_logger

log = get_logger("evaluation")


@dataclass(kw_only=True, frozen=True)
class RetrieverEvaluateConfig(Checked):
    """Evaluate a retriever by answer recall, by gold-passage recall where gold is known, and by --qrels."""

    search: SearchConfig
    """What is searched."""
    questions: Path
    """DPR .qa.csv, queries of BEIR or MS MARCO, KILT, TREC topics, tables, JSON, or training data (which also names
    gold passages); plain or gzip."""
    asked: AskedQuestionsConfig = field(default_factory=AskedQuestionsConfig)
    """Which of them are asked, and how."""
    output_dir: Path
    """Folder for metrics.json, ranks.jsonl, results.json (DPR's format), run.trec, config.yaml and run_record.json;
    with --qrels also beir_results.json and mteb_results.json."""
    topk: tuple[PositiveInt, ...] = (1, 5, 20, 100)
    """Depths at which recall, and with --qrels every metric, is measured (there always at 10 as well); the greatest is
    the number of passages retrieved."""
    write_results: bool = True
    """Write the retrieved passages (results.json, run.trec) as well as the figures."""
    judgements: JudgementsConfig = field(default_factory=JudgementsConfig)
    """Which passages are relevant."""
    matching: AnswerMatchConfig = field(default_factory=AnswerMatchConfig)
    """When a passage holds an answer."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How questions are encoded."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""

    @property
    def depths(self) -> list[int]:
        """Depths of the metrics, ascending."""
        return sorted({*self.topk, *([PUBLISHED_DEPTH] if self.judgements.qrels else [])})


def main(config: RetrieverEvaluateConfig, topology: ProcessTopology) -> None:
    record = RunRecord(config, topology.world_size)
    questions = list(read_questions(config.questions, config.asked))
    require_distinct_ids(config.questions, questions)
    qrels = config.judgements.read([question.id for question in questions])
    session = open_search(config.search, config.encode, topology)
    matcher = AnswerMatcher(config.matching)
    depth, ignores_own = config.depths[-1], config.judgements.ignore_identical_ids
    retrieved = session.evaluate(
        questions, matcher, topology, depth=depth + ignores_own, micro_batch_size=config.encode.micro_batch_size
    )
    if topology.is_main:
        if ignores_own:
            retrieved = without_own_passages(questions, retrieved, session.evidence, depth)
        metrics = retrieval_metrics(retrieved.ranks, config.depths, "answer_" if qrels else "")
        values: Values = {}
        if qrels:
            values = _judged(config, session, questions, retrieved, qrels)
            metrics |= judged_metrics(values) | {"num_missing_passages": _num_missing(session, qrels)}
        metrics |= _protocol(config, session, matcher)
        _write(config, session, questions, retrieved, metrics, values)
        record.write(config.output_dir)
        sys.stdout.write(_table(metrics, config.depths) + "\n")


def _judged(
    config: RetrieverEvaluateConfig,
    session: SearchSession,
    questions: list[Question],
    retrieved: Retrieved,
    qrels: Qrels,
) -> Values:
    ranked = [
        [passage.id for passage, _, _ in found_passages(retrieved, number, session.evidence)]
        for number in range(len(questions))
    ]
    return judged_values([question.id for question in questions], ranked, qrels, config.depths)


def _num_missing(session: SearchSession, qrels: Qrels) -> int:
    """Relevant passages that the evidence lacks, which nothing can find."""
    relevant = sorted({name for grades in qrels.values() for name, grade in grades.items() if grade > 0})
    missing = int((session.evidence.rows_of(relevant) < 0).sum())
    if missing:
        log.warning("%s of %s relevant passages are not in the evidence", f"{missing:,}", f"{len(relevant):,}")
    return missing


def _protocol(config: RetrieverEvaluateConfig, session: SearchSession, matcher: AnswerMatcher) -> dict[str, Any]:
    """The switches that the figures depend on."""
    return {
        "questions": str(config.questions),
        **recorded(config.matching, config.asked, config.judgements),
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
    values: Values,
) -> None:
    folder = config.output_dir
    write_json(folder / METRICS, metrics)
    write_ranks(folder / RANKS, questions, retrieved.ranks, values)
    if config.judgements.qrels:
        write_benchmark_results(folder, metrics, config.depths, config.judgements.qrels)
    write_config(config, folder / "config.yaml")
    if config.write_results:
        write_dpr_results(folder / RESULTS, questions, retrieved, session.evidence)
        try:
            write_trec_run(folder / TREC_RUN, questions, retrieved, session.evidence, tag="megatron-retrieval")
        except DataError as error:  # the other files hold ids of any kind
            log.warning("run.trec is not written: %s", error)


def _table(metrics: dict[str, Any], topk: list[int]) -> str:
    """Metrics in percent with their 95 % intervals."""
    is_judged = "num_judged_questions" in metrics
    published = [f"ndcg@{PUBLISHED_DEPTH}", f"mrr@{PUBLISHED_DEPTH}", "map", f"unjudged@{PUBLISHED_DEPTH}"]
    rows = [[name, *rate_cells(metrics, name)] for name in published if is_judged]
    kinds = {"answer_": "answer recall", "": "recall" if is_judged else "answer recall", "gold_": "gold passage recall"}
    for prefix, name in kinds.items():
        found = [(f"{name}@{k}", f"{prefix}recall@{k}") for k in topk]
        rows += [[title, *rate_cells(metrics, key)] for title, key in found if key in metrics]
    counts = f"{metrics['num_questions']:,} questions, {metrics['num_passages']:,} passages"
    return f"{counts}\n\n{text_table(['', '%', '95 % interval'], rows)}"
