"""Files of a retriever's evaluation: metrics, ranks, passages in DPR's JSON, a TREC run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isnan, nan
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.data.files.passage_questions import QuestionCensus, ReaderQuestion, question_to_read
from megatron_retrieval.errors import DataError
from megatron_retrieval.evaluation.intervals import mean_interval
from megatron_retrieval.evaluation.judged_metrics import Values
from megatron_retrieval.evaluation.rank_metrics import Ranks, RetrievalRanks, average_rank, hits_at
from megatron_retrieval.types.questions import Passage, Question
from megatron_retrieval.utils.files import atomic_file, read_lines

METRICS = "metrics.json"
RANKS = "ranks.jsonl"
RESULTS = "results.json"
TREC_RUN = "run.trec"


class PassagesByRow(Protocol):
    """Evidence to read passages from."""

    def passages(self, rows: Any) -> Sequence[Passage]:
        """The passages of `rows`, a sequence or an array of row numbers, in that order."""
        ...


@dataclass(frozen=True)
class Retrieved:
    """The passages retrieved for Q questions, in the order of the questions.

    Attributes:
        rows: [Q, K] int64, -1 where fewer were found.
        scores: [Q, K] float32.
        has_answer: [Q, K] bool.
        ranks: the ranks of the first hits.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    has_answer: NDArray[np.bool_]
    ranks: RetrievalRanks


def recorded(*settings: Any) -> dict[str, Any]:
    """The settings that figures depend on, by their flags with underscores."""
    return {name.replace("-", "_"): value for part in settings for name, value in to_flat_dict(part).items()}


def retrieval_metrics(ranks: RetrievalRanks, topk: Sequence[int], answer_prefix: str = "") -> dict[str, Any]:
    """Flat metrics: recall@k and gold_recall@k with 95 % intervals, average rank of the first hit, counts.

    Questions without answers count for no recall by answers; it is left out where none has any.
    """
    answer, gold = ranks.known_answer, ranks.known_gold
    metrics: dict[str, Any] = {"num_questions": len(ranks.answer)}
    if len(answer) < len(ranks.answer):
        metrics["num_questions_without_answers"] = len(ranks.answer) - len(answer)
    if len(answer):
        metrics |= _recall_metrics(answer_prefix, answer, topk)
    metrics["num_gold_questions"] = len(gold)
    if len(gold):
        metrics |= _recall_metrics("gold_", gold, topk)
    return metrics


def _recall_metrics(prefix: str, ranks: Ranks, topk: Sequence[int]) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for k in topk:
        interval = mean_interval(hits_at(ranks, k))
        metrics[f"{prefix}recall@{k}"] = interval.mean
        metrics[f"{prefix}recall@{k}_ci95"] = [interval.low, interval.high]
    metrics[f"{prefix}average_rank"] = average_rank(ranks)
    return metrics


def write_ranks(path: Path, questions: Sequence[Question], ranks: RetrievalRanks, values: Values | None = None) -> None:
    """Write one line per question: its text, the ranks of its first hits, and its metrics by judgements (null where it
    is not judged), which a comparison of two runs reads."""
    columns = {name: column.tolist() for name, column in (values or {}).items()}
    with atomic_file(path) as file:
        for number, question in enumerate(questions):
            line: dict[str, Any] = {"id": question.id, "question": question.text}
            line |= {"answer_rank": int(ranks.answer[number]), "gold_rank": int(ranks.gold[number])}
            line |= {name: None if isnan(column[number]) else column[number] for name, column in columns.items()}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_ranks(path: Path) -> tuple[list[str], RetrievalRanks, Values]:
    """(questions, ranks, metrics by judgements) from `write_ranks`' file.

    Raises:
        DataError: missing or malformed, with the line.
    """
    questions, answer, gold = [], [], []
    values: dict[str, list[float]] = {}
    for number, line in enumerate(read_lines(path), 1):
        try:
            record = json.loads(line)
            questions.append(f"{record.pop('id')}\t{record.pop('question')}")
            answer.append(int(record.pop("answer_rank")))
            gold.append(int(record.pop("gold_rank")))
            for name, value in record.items():
                values.setdefault(name, []).append(nan if value is None else float(value))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(path, "not a line of ranks", line=number, hint="Evaluate again.") from error
    ranks = RetrievalRanks(np.array(answer, np.int64), np.array(gold, np.int64))
    return questions, ranks, {name: np.array(column) for name, column in values.items()}


def write_dpr_results(path: Path, questions: Sequence[Question], retrieved: Retrieved, evidence: PassagesByRow) -> None:
    """Write DPR's format: a list of {question, answers, ctxs [{id, title, text, score (a string), has_answer}]}, with
    the question's id."""
    with atomic_file(path) as file:
        file.write("[")
        for number, question in enumerate(questions):
            contexts = [
                {"id": passage.id, "title": passage.title, "text": passage.text, "score": str(score), "has_answer": hit}
                for passage, score, hit in found_passages(retrieved, number, evidence)
            ]
            record = {"id": question.id, "question": question.text, "answers": list(question.answers), "ctxs": contexts}
            file.write((",\n" if number else "\n") + json.dumps(record, ensure_ascii=False))
        file.write("\n]\n")


def write_trec_run(
    path: Path, questions: Sequence[Question], retrieved: Retrieved, evidence: PassagesByRow, tag: str
) -> None:
    """Write the TREC format of trec_eval and Pyserini: question id, Q0, passage id, rank from 1, score, tag.

    trec_eval orders by score alone, equal ones by their ids backwards: a score that is equal to the one before is
    written as the next lower float32, so that the order stays.

    Raises:
        DataError: an id holds white space, which divides the columns.
    """
    with atomic_file(path) as file:
        for number, question in enumerate(questions):
            last = np.float32(np.inf)
            for rank, (passage, score, _) in enumerate(found_passages(retrieved, number, evidence), 1):
                last = min(score, np.nextafter(last, np.float32(-np.inf)))
                for name in (question.id, passage.id):
                    if len(name.split()) != 1:
                        raise DataError(path, f"the id {name!r} holds white space, which divides the columns of a run")
                file.write(f"{question.id} Q0 {passage.id} {rank} {last!s} {tag}\n")


def found_passages(
    retrieved: Retrieved, number: int, evidence: PassagesByRow
) -> Iterator[tuple[Passage, np.float32, bool]]:
    """(passage, score, whether it contains an answer) of a question's retrieved passages, best first."""
    found = retrieved.rows[number] >= 0
    passages = evidence.passages(retrieved.rows[number][found])
    return zip(passages, retrieved.scores[number][found], retrieved.has_answer[number][found].tolist(), strict=True)


def questions_with_passages(
    questions: Sequence[Question], retrieved: Retrieved, evidence: PassagesByRow, census: QuestionCensus, k: int
) -> Iterator[ReaderQuestion]:
    """Yield the questions with their `k` best retrieved passages, as input of a reader."""
    for number, question in enumerate(questions):
        found = list(islice(found_passages(retrieved, number, evidence), k))
        read, num_blank = question_to_read(
            question, [passage for passage, _, _ in found], [float(score) for _, score, _ in found]
        )
        census.count(read, num_blank, closed_book=False)
        yield read
