"""Evaluate a retriever: how often do the first k passages hold an answer?"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_retrieval.config import to_flat_dict, write_config
from megatron_retrieval.data.questions import read_questions
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.evaluation.results import (
    METRICS,
    RANKS,
    RESULTS,
    TREC_RUN,
    Retrieved,
    retrieval_metrics,
    write_dpr_results,
    write_ranks,
    write_trec_run,
)
from megatron_retrieval.evaluation.retriever_task import evaluate_retriever
from megatron_retrieval.parallel import ParallelConfig, ProcessTopology, run_distributed
from megatron_retrieval.recipes.search import SearchConfig, SearchSession, open_search
from megatron_retrieval.reports.run_record import RunRecord
from megatron_retrieval.reports.tables import percent, text_table
from megatron_retrieval.retrieval import EncodeConfig
from megatron_retrieval.retrieval.retriever import tokenize_questions
from megatron_retrieval.types import Question
from megatron_retrieval.utils.files import write_json


@dataclass(kw_only=True, frozen=True)
class QuestionsConfig:
    """Which questions are asked, and how their text is prepared; recorded in the result."""

    questions: Path
    """DPR .qa.csv, JSON lines, or DPR biencoder JSON (which also names gold passages); plain or gzip."""
    max_questions: int | None = None
    """Ask only the first so many (after the stride); default: all."""
    question_stride: int = 1
    """Ask only every so-manyth question, from the first on."""
    strip_question_mark: bool = False
    """Drop one question mark at the end, as Megatron-LM does."""
    plain_apostrophes: bool = False
    """Write ’ as ', as DPR does."""

    def __post_init__(self) -> None:
        if self.question_stride < 1 or (self.max_questions is not None and self.max_questions < 1):
            raise ConfigError("--question-stride and --max-questions must be at least 1.")

    def read(self) -> list[Question]:
        """The chosen questions."""
        chosen = read_questions(self.questions)[:: self.question_stride][: self.max_questions]
        return [dataclasses.replace(question, text=self._prepared(question.text)) for question in chosen]

    def _prepared(self, text: str) -> str:
        if self.strip_question_mark:
            text = text.removesuffix("?")
        return text.replace("’", "'") if self.plain_apostrophes else text


@dataclass(kw_only=True, frozen=True)
class RetrieverEvaluateConfig:
    """Evaluate a retriever by answer recall and, where gold is known, gold-passage recall."""

    search: SearchConfig
    """What is searched."""
    asked: QuestionsConfig
    """What is asked."""
    output_dir: Path
    """Folder for metrics.json, ranks.jsonl, results.json (DPR's format), run.trec, config.yaml and run_record.json."""
    topk: tuple[int, ...] = (1, 5, 20, 100)
    """Depths at which recall is measured; the greatest is the number of passages retrieved."""
    write_results: bool = True
    """Write the retrieved passages (results.json, run.trec) as well as the figures."""
    matching: AnswerMatchConfig = field(default_factory=AnswerMatchConfig)
    """When a passage holds an answer."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How questions are encoded."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""

    def __post_init__(self) -> None:
        if not self.topk or min(self.topk) < 1:
            raise ConfigError(f"--topk {' '.join(map(str, self.topk))}: depths must be at least 1.")


def main(config: RetrieverEvaluateConfig, topology: ProcessTopology) -> None:
    record = RunRecord(config, topology.world_size)
    questions = config.asked.read()
    session = open_search(config.search, config.encode, topology)
    matcher = AnswerMatcher(config.matching)
    encoder = session.encoder
    retrieved = evaluate_retriever(
        questions,
        tokenize_questions(
            [question.text for question in questions], session.tokenizer, encoder.description.text_format
        ),
        encoder.model.encode_queries,
        session.retriever,
        session.evidence,
        matcher,
        topology,
        depth=max(config.topk),
        micro_batch_size=config.encode.micro_batch_size,
    )
    if topology.is_main:
        topk = sorted(set(config.topk))
        metrics = retrieval_metrics(retrieved.ranks, topk) | _protocol(config, session, matcher)
        _write(config, session, questions, retrieved, metrics)
        record.write(config.output_dir)
        sys.stdout.write(_table(metrics, topk) + "\n")


def _protocol(config: RetrieverEvaluateConfig, session: SearchSession, matcher: AnswerMatcher) -> dict[str, Any]:
    """The switches that the figures depend on."""
    switches = to_flat_dict(config.matching) | to_flat_dict(config.asked)
    return {
        **{name.replace("-", "_"): value for name, value in switches.items()},
        "num_bad_patterns": matcher.num_bad_patterns,
        "num_passages": len(session.evidence),
        "evidence_fingerprint": session.evidence.fingerprint,
        "encoder_fingerprint": session.encoder.description.fingerprint,
        "embedding_dtype": session.embeddings.manifest.identity.dtype,
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
    rows = []
    for name, prefix in kinds:
        for k in topk:
            low, high = metrics[f"{prefix}recall@{k}_ci95"]
            interval = f"{percent(low)} - {percent(high)}"
            rows.append([f"{name} recall@{k}", percent(metrics[f"{prefix}recall@{k}"]), interval])
    counts = f"{metrics['num_questions']:,} questions, {metrics['num_passages']:,} passages"
    return f"{counts}\n\n{text_table(['', '%', '95 % interval'], rows)}"


if __name__ == "__main__":
    run_distributed(RetrieverEvaluateConfig, main)
