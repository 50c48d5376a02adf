"""Exact match and F1 during training: held-out questions answered with the weights of the moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.evaluation.exact_match import AnswerScoreConfig, answer_metrics
from megatron_retrieval.evaluation.reader_task import Reader, evaluate_reader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.step import evaluation_mode


class GivenPassagesTask:
    """Questions to put to a reader in training, as often as wanted.

    Args:
        model: what `reader` answers with; it is put into evaluation mode for that.
    """

    name = "reading"

    def __init__(
        self, questions: Sequence[ReaderQuestion], reader: Reader, model: nn.Module, scoring: AnswerScoreConfig
    ) -> None:
        self._questions, self._reader, self._model, self._scoring = questions, reader, model, scoring

    def measure(self, topology: ProcessTopology) -> dict[str, Any]:
        """`answer_metrics` of the model as it stands; a collective over all ranks.

        Draws no random number and gives the model back in the mode in which it was.
        """
        with evaluation_mode(self._model):
            results = evaluate_reader(self._questions, self._reader, self._scoring, topology, show_progress=False)
        return answer_metrics([score for _, score in results])
