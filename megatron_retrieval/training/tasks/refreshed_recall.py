"""Recall whenever the index is refreshed: questions against the index that training searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.marks import HELD_OUT
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_sample import spread_rows
from megatron_retrieval.errors import DataError
from megatron_retrieval.evaluation.answer_matching import AnswerMatcher
from megatron_retrieval.evaluation.retrieval_results import retrieval_metrics
from megatron_retrieval.evaluation.retriever_task import evaluate_retriever
from megatron_retrieval.index.api import SearchIndex
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.retriever import Retriever, tokenize_questions
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.callbacks import EvaluateTask, MeasuredTask
from megatron_retrieval.training.metrics_log import MetricsLog
from megatron_retrieval.training.steps.passage_search import PassageSearch
from megatron_retrieval.training.steps.step import evaluation_mode
from megatron_retrieval.training.trainer import StepReport, Trainer
from megatron_retrieval.types.questions import Question


@dataclass(kw_only=True, frozen=True)
class ZeroShotConfig(Checked):
    """Questions that training never sees: recall on them before the first step and with every new index."""

    eval_questions: str | None = field(default=None, metadata=HELD_OUT)
    """Questions: DPR .qa.csv, JSON lines, or DPR biencoder JSON, plain or gzip; default: no recall is measured."""
    eval_max_questions: PositiveInt | None = None
    """Ask only so many questions, at equal distances in the file; default: all."""

    def questions(self) -> list[Question]:
        """Those of the file.

        Raises:
            DataError: it is missing or malformed, or none of them can be judged.
        """
        if self.eval_questions is None:
            return []
        questions = list(read_questions(self.eval_questions))
        if not any(question.answers or question.gold_passage_ids for question in questions):
            problem = "no question has an answer or a gold passage"
            raise DataError(self.eval_questions, problem, hint="Recall needs one of them.")
        return [questions[number] for number in spread_rows(len(questions), self.eval_max_questions).tolist()]


class IndexRecallTask:
    """Questions to find passages for with the weights and the index of the moment; see MeasuredTask.

    Args:
        depths: at which recall is measured.
        tokenizer: of the retriever.
    """

    name = "recall"

    def __init__(
        self,
        questions: Sequence[Question],
        depths: Sequence[int],
        model: DualEncoder,
        search: PassageSearch,
        evidence: EvidenceStore,
        tokenizer: Vocabulary,
        text_format: TextFormatConfig,
        matcher: AnswerMatcher,
    ) -> None:
        self._questions, self._depths, self._model = questions, sorted(set(depths)), model
        self._search, self._evidence, self._matcher = search, evidence, matcher
        self._tokens = tokenize_questions([question.text for question in questions], tokenizer, text_format)

    def measure(self, topology: ProcessTopology) -> dict[str, Any]:
        """`retrieval_metrics`; a collective over all ranks."""
        with evaluation_mode(self._model):
            retrieved = evaluate_retriever(
                self._questions,
                self._tokens,
                self._model.encode_queries,
                Retriever(self._search.current_index()),
                self._evidence,
                self._matcher,
                topology,
                depth=self._depths[-1],
            )
        return retrieval_metrics(retrieved.ranks, self._depths)


class EvaluateAtRefresh(EvaluateTask):
    """As EvaluateTask, and with every new index; added behind the refresher."""

    def __init__(self, task: MeasuredTask, search: PassageSearch, interval: int, metrics_log: MetricsLog) -> None:
        super().__init__(task, interval, metrics_log)
        self._search = search
        self._measured: SearchIndex | None = None

    def on_start(self, trainer: Trainer) -> None:
        self._measured = self._search.current_index()
        super().on_start(trainer)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if self._search.current_index() is not self._measured:
            self._measured = self._search.current_index()
            self._evaluate(trainer)
        else:
            super().on_step(trainer, report)
