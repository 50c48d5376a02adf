"""Recall, exact match and F1 during end-to-end training: held-out questions, with the weights and the index of the
moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.data.files.passage_questions import QuestionCensus
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.evaluation.answer_matching import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.evaluation.exact_match import AnswerScoreConfig, answer_metrics
from megatron_retrieval.evaluation.reader_task import Reader, evaluate_reader
from megatron_retrieval.evaluation.retrieval_results import questions_with_passages, retrieval_metrics
from megatron_retrieval.evaluation.retriever_task import evaluate_retriever
from megatron_retrieval.models.end_to_end import EndToEndModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.retriever import Retriever
from megatron_retrieval.training.steps.passage_search import PassageSearch
from megatron_retrieval.training.steps.step import evaluation_mode
from megatron_retrieval.types.questions import Question
from megatron_retrieval.types.tokens import TokenBatch


@dataclass(kw_only=True, frozen=True)
class AnsweringConfig(Checked):
    """What is measured of held-out questions."""

    eval_topk: tuple[PositiveInt, ...] = (1, 5, 20)
    """Depths at which recall is measured."""
    matching: AnswerMatchConfig = field(default_factory=AnswerMatchConfig)
    scoring: AnswerScoreConfig = field(default_factory=AnswerScoreConfig)


class RetrievedPassagesTask:
    """Questions to find passages for and to answer from them, as often as wanted.

    Args:
        tokens: the questions, as the retriever reads them.
        model: retriever and reader; put into evaluation mode for that.
        search: over the index of the moment.
        new_reader: makes what answers, with the weights of the moment.
    """

    name = "answering"

    def __init__(
        self,
        config: AnsweringConfig,
        questions: Sequence[Question],
        tokens: TokenBatch,
        model: EndToEndModel,
        search: PassageSearch,
        evidence: EvidenceStore,
        new_reader: Callable[[], Reader],
    ) -> None:
        self._config, self._questions, self._tokens, self._model = config, questions, tokens, model
        self._search, self._evidence, self._new_reader = search, evidence, new_reader

    def measure(self, topology: ProcessTopology) -> dict[str, Any]:
        """`retrieval_metrics` and `answer_metrics`; a collective over all ranks.

        Draws no random number and gives the model back in the mode in which it was.
        """
        depths, num_passages = sorted(set(self._config.eval_topk)), self._search.config.num_passages
        with evaluation_mode(self._model):
            retrieved = evaluate_retriever(
                self._questions,
                self._tokens,
                self._model.retriever.encode_queries,
                Retriever(self._search.current_index()),
                self._evidence,
                AnswerMatcher(self._config.matching),
                topology,
                depth=max(*depths, num_passages),
            )
            stream = questions_with_passages(self._questions, retrieved, self._evidence, QuestionCensus(), num_passages)
            results = evaluate_reader(stream, self._new_reader(), self._config.scoring, topology, show_progress=False)
        return {**retrieval_metrics(retrieved.ranks, depths), **answer_metrics([score for _, score in results])}
