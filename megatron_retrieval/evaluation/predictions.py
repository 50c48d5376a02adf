"""A reader's predictions, one line of predictions.jsonl per question."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.evaluation.exact_match import AnswerScore
from megatron_retrieval.utils.files import atomic_file

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Prediction:
    """A reader's answer.

    Attributes:
        text: the answer; empty where the reader has none.
        score: higher is better; its meaning depends on the reader.
        passage: index (from 0) of the passage that the answer comes from; None where all were read jointly.
        figures: numbers of the search for it, by name; their means over questions are reported.
    """

    text: str
    score: float = 0.0
    passage: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadQuestion:
    """A question with its prediction and the prediction's score."""

    question: ReaderQuestion
    prediction: Prediction
    score: AnswerScore


def mean_figures(predictions: Sequence[Prediction]) -> dict[str, float]:
    """The means of the numbers of their searches, by name."""
    names = dict.fromkeys(name for prediction in predictions for name in prediction.figures)
    own = {
        name: [prediction.figures[name] for prediction in predictions if name in prediction.figures] for name in names
    }
    return {f"mean_{name}": sum(values) / len(values) for name, values in own.items()}


def write_predictions(path: Path, read: Iterable[ReadQuestion]) -> None:
    """Write one line per question: prediction, scores and acceptable answers."""
    with atomic_file(path) as file:
        for item in read:
            question, prediction = item.question, item.prediction
            passage = None if prediction.passage is None else question.passages[prediction.passage].id
            line = {
                "id": question.id,
                "question": question.text,
                "answers": list(question.answers),
                "prediction": prediction.text,
                "exact_match": item.score.exact_match,
                "f1": item.score.f1,
                "score": prediction.score,
                "passage": passage,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
