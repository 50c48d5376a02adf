"""Files of a retriever's evaluation: metrics, ranks, passages in DPR's JSON, a TREC run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.data.files.passage_questions import QuestionCensus, ReaderQuestion, question_to_read
from megatron_retrieval.errors import DataError
from megatron_retrieval.evaluation.intervals import mean_interval
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


def retrieval_metrics(ranks: RetrievalRanks, topk: Sequence[int]) -> dict[str, Any]:
    """Flat metrics: recall@k and gold_recall@k with 95 % intervals, average rank of the first hit, counts."""
    metrics: dict[str, Any] = {"num_questions": len(ranks.answer)}
    metrics |= _recall_metrics("", ranks.answer, topk)
    gold = ranks.known_gold
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


def write_ranks(path: Path, questions: Sequence[Question], ranks: RetrievalRanks) -> None:
    """Write one line per question: its text and the ranks of its first hits, which a comparison of two runs reads."""
    with atomic_file(path) as file:
        for question, answer, gold in zip(questions, ranks.answer.tolist(), ranks.gold.tolist(), strict=True):
            line = {"id": question.id, "question": question.text, "answer_rank": answer, "gold_rank": gold}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_ranks(path: Path) -> tuple[list[str], RetrievalRanks]:
    """(questions, ranks) from `write_ranks`' file.

    Raises:
        DataError: missing or malformed, with the line.
    """
    questions, answer, gold = [], [], []
    for number, line in enumerate(read_lines(path), 1):
        try:
            record = json.loads(line)
            questions.append(f"{record['id']}\t{record['question']}")
            answer.append(int(record["answer_rank"]))
            gold.append(int(record["gold_rank"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(path, "not a line of ranks", line=number, hint="Evaluate again.") from error
    return questions, RetrievalRanks(np.array(answer, np.int64), np.array(gold, np.int64))


def write_dpr_results(path: Path, questions: Sequence[Question], retrieved: Retrieved, evidence: PassagesByRow) -> None:
    """Write DPR's format: a list of {question, answers, ctxs [{id, title, text, score (a string), has_answer}]}."""
    with atomic_file(path) as file:
        file.write("[")
        for number, question in enumerate(questions):
            contexts = [
                {"id": passage.id, "title": passage.title, "text": passage.text, "score": str(score), "has_answer": hit}
                for passage, score, hit in found_passages(retrieved, number, evidence)
            ]
            record = {"question": question.text, "answers": list(question.answers), "ctxs": contexts}
            file.write((",\n" if number else "\n") + json.dumps(record, ensure_ascii=False))
        file.write("\n]\n")


def write_trec_run(
    path: Path, questions: Sequence[Question], retrieved: Retrieved, evidence: PassagesByRow, tag: str
) -> None:
    """Write the TREC format of trec_eval and Pyserini: question id, Q0, passage id, rank from 1, score, tag."""
    with atomic_file(path) as file:
        for number, question in enumerate(questions):
            for rank, (passage, score, _) in enumerate(found_passages(retrieved, number, evidence), 1):
                file.write(f"{_word(question.id)} Q0 {_word(passage.id)} {rank} {score!s} {tag}\n")


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


def _word(identifier: str) -> str:
    """TREC columns are separated by white space."""
    return "_".join(identifier.split()) or "_"
