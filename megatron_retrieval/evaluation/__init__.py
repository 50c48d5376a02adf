"""How good is what was retrieved: answer matching, recall, intervals, result files, and the task that makes them."""

from megatron_retrieval.evaluation.answers import AnswerMatchConfig, AnswerMatcher

__all__ = ["AnswerMatchConfig", "AnswerMatcher"]
