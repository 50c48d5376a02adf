"""How good is what was retrieved: answer matching, recall, intervals, result files."""

from megatron_retrieval.evaluation.answers import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.evaluation.retriever_task import evaluate_retriever

__all__ = ["AnswerMatchConfig", "AnswerMatcher", "evaluate_retriever"]
