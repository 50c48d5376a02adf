"""Result files have the shapes that other programs read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from megatron_retrieval.errors import DataError
from megatron_retrieval.evaluation.rank_metrics import NOT_FOUND, UNKNOWN, RetrievalRanks
from megatron_retrieval.evaluation.retrieval_results import (
    Retrieved,
    read_ranks,
    write_dpr_results,
    write_ranks,
    write_trec_run,
)
from megatron_retrieval.types.questions import Passage, Question


class _Evidence:
    def passages(self, rows: Sequence[int]) -> list[Passage]:
        return [Passage(f"p {row}", f"Title {row}", f"Text\t“{row}”") for row in rows]


QUESTIONS = [Question("q1", "who?", ("a", "b")), Question("q 2", "où?", ())]
RETRIEVED = Retrieved(
    rows=np.array([[4, 2], [7, -1]]),
    scores=np.array([[1.5, 0.1], [3.0, -np.inf]], np.float32),
    has_answer=np.array([[False, True], [False, False]]),
    ranks=RetrievalRanks(np.array([2, NOT_FOUND]), np.array([1, UNKNOWN])),
)


def test_dpr_results(tmp_path: Path) -> None:
    write_dpr_results(tmp_path / "results.json", QUESTIONS, RETRIEVED, _Evidence())
    first, second = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (first["question"], first["answers"]) == ("who?", ["a", "b"])
    assert first["ctxs"] == [
        {"id": "p 4", "title": "Title 4", "text": "Text\t“4”", "score": "1.5", "has_answer": False},
        {"id": "p 2", "title": "Title 2", "text": "Text\t“2”", "score": "0.1", "has_answer": True},
    ]
    assert [context["id"] for context in second["ctxs"]] == ["p 7"]


def test_trec_run_has_six_columns(tmp_path: Path) -> None:
    write_trec_run(tmp_path / "run.trec", QUESTIONS, RETRIEVED, _Evidence(), "tag")
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert lines == ["q1 Q0 p_4 1 1.5 tag", "q1 Q0 p_2 2 0.1 tag", "q_2 Q0 p_7 1 3.0 tag"]


def test_ranks_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "ranks.jsonl"
    write_ranks(path, QUESTIONS, RETRIEVED.ranks)
    questions, ranks = read_ranks(path)
    assert questions == ["q1\twho?", "q 2\toù?"]
    assert ranks.answer.tolist() == [2, NOT_FOUND]
    assert ranks.gold.tolist() == [1, UNKNOWN]
    path.write_text(path.read_text() + '{"id": "cut of')
    with pytest.raises(DataError, match=r"ranks.jsonl:3: not a line of ranks"):
        read_ranks(path)
