"""Which passages become hard negatives, and which a positive: windows, margins, answers, gold passages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_retrieval.applications.mining.mining import MineNegativesConfig, MiningCensus, mine_negatives
from megatron_retrieval.applications.mining.rules import Hit, MiningRulesConfig, hard_negatives
from megatron_retrieval.data.files.training_files import read_biencoder
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.retrieval.reranker import RerankConfig, Reranker
from megatron_retrieval.types.questions import Passage

POSITIVE = Passage("p", "", "the gold")
#: by rank from 1: id, score; the third is the gold passage, "a..." hold an answer
RANKED = [("n1", 20.0), ("a2", 19.0), ("p", 18.0), ("n4", 16.0), ("n5", 12.0), ("n6", -3.0)]
HITS = [Hit(Passage(name, "", f"text {name}"), score) for name, score in RANKED]


def _mined(hits: list[Hit] = HITS, positives: tuple[Passage, ...] = (POSITIVE,), **rules: Any) -> list[str]:
    mined = hard_negatives(hits, positives, (), lambda passage: passage.id.startswith("a"), MiningRulesConfig(**rules))
    return [hit.passage.id for hit in mined]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, ["n1", "n4", "n5", "n6"]),
        ({"num_mined": 2}, ["n1", "n4"]),
        ({"skip_ranks": 1}, ["n4", "n5", "n6"]),
        ({"max_rank": 4}, ["n1", "n4"]),
        ({"min_score": 12.0, "max_score": 16.0}, ["n4", "n5"]),
        ({"margin": 2.0}, ["n4", "n5", "n6"]),
        ({"margin": 2.5}, ["n5", "n6"]),
        ({"relative_margin": 0.25}, ["n5", "n6"]),
        ({"relative_margin": 0.0, "margin": -1.5}, ["n4", "n5", "n6"]),
        ({"margin": -2.0}, ["n1", "n4", "n5", "n6"]),
        ({"margin": 2.0, "max_rank": 2}, []),
    ],
)
def test_windows_and_margins(rules: dict[str, float], expected: list[str]) -> None:
    assert _mined(**rules) == expected


def test_a_relative_margin_below_a_negative_score() -> None:
    hits = [Hit(Passage("p", "", ""), -10.0), Hit(Passage("n1", "", "1"), -10.5), Hit(Passage("n2", "", "2"), -11.0)]
    assert _mined(hits, relative_margin=0.1) == ["n2"]


def test_without_the_positives_score_a_margin_leaves_nothing() -> None:
    assert _mined(positives=(Passage("elsewhere", "", "x"),), margin=0.0) == []
    assert _mined(positives=(Passage("elsewhere", "", "x"),))[:2] == ["n1", "p"]


def test_gold_is_known_by_its_text_and_an_answer_by_the_finders_word() -> None:
    assert _mined(positives=(Passage("", "", "text n4"),), num_mined=3) == ["n1", "p", "n5"]
    assert _mined([Hit(Passage("n1", "", ""), 1.0, has_answer=True), *HITS[4:]]) == ["n5", "n6"]


@pytest.mark.parametrize(
    "rules",
    [{"num_mined": 0}, {"skip_ranks": -1}, {"skip_ranks": 5, "max_rank": 5}, {"min_score": 2.0, "max_score": 1.0}],
)
def test_rules_that_leave_nothing(rules: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MiningRulesConfig(**rules)  # type: ignore[arg-type]


def _context(name: str, text: str, score: object = "1.5") -> dict[str, Any]:
    return {"id": name, "title": "t", "text": text, "score": score, "has_answer": False}


FOUND = [
    {
        "question": "where",
        "answers": ["oslo"],
        "ctxs": [_context("1", "Oslo"), _context("2", "Lima", 9), _context("3", "Riga")],
    },
    {"question": "who", "answers": ["ada"], "ctxs": [_context("4", "no one"), _context("5", "an Ada")]},
]


def _mine(
    folder: Path,
    train: Any,
    found: Any = FOUND,
    name: str = "train.json",
    reranker: Reranker | None = None,
    **settings: Any,
) -> MiningCensus:
    (folder / "results.json").write_text(json.dumps(found))
    (folder / name).write_text(train if isinstance(train, str) else json.dumps(train))
    places = {"train_data": folder / name, "results": folder / "results.json", "output": folder / "mined.json"}
    return mine_negatives(MineNegativesConfig(**places, **settings), reranker)


def _records(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "mined.json").read_text())


TRAIN = [
    {
        "question": "where",
        "answers": ["Oslo"],
        "positive_ctxs": [_context("1", "Oslo")],
        "hard_negative_ctxs": [],
        "extra": 7,
    },
    {
        "question": "who",
        "answers": ["Ada"],
        "positive_ctxs": [_context("5", "an Ada")],
        "hard_negative_ctxs": [_context("4", "no one"), _context("9", "known")],
    },
]


def test_mined_passages_replace_those_of_the_file(tmp_path: Path) -> None:
    census = _mine(tmp_path, TRAIN, rules=MiningRulesConfig(num_mined=1))
    assert census == MiningCensus(written=2, mined_negatives=2)
    first, second = _records(tmp_path)
    assert (first["extra"], first["positive_ctxs"]) == (7, TRAIN[0]["positive_ctxs"])
    lima = {"title": "t", "text": "Lima", "score": 9.0, "title_score": 0, "passage_id": "2"}
    assert first["hard_negative_ctxs"] == [lima]
    assert [context["passage_id"] for context in second["hard_negative_ctxs"]] == ["4"]


def test_mined_passages_beside_those_of_the_file(tmp_path: Path) -> None:
    found = [FOUND[0], {**FOUND[1], "ctxs": [*FOUND[1]["ctxs"], _context("6", "new")]}]
    census = _mine(tmp_path, TRAIN, found, rules=MiningRulesConfig(keep_hard_negatives=True))
    assert census.mined_negatives == 3
    second = _records(tmp_path)[1]["hard_negative_ctxs"]
    assert [context["text"] for context in second] == ["no one", "known", "new"]


def test_distant_supervision_from_questions_alone(tmp_path: Path) -> None:
    questions = "where\t['Oslo', 'Riga']\nwho\t['Ada']\n"
    settings: dict[str, Any] = {"name": "train.qa.csv", "rules": MiningRulesConfig(margin=-10.0)}
    census = _mine(tmp_path, questions, distant_supervision=2, **settings)
    assert census == MiningCensus(written=2, mined_negatives=2)
    first, second = _records(tmp_path)
    assert [context["passage_id"] for context in first["positive_ctxs"]] == ["1"]
    assert [context["text"] for context in first["hard_negative_ctxs"]] == ["Lima"]
    assert (second["positive_ctxs"][0]["text"], second["hard_negative_ctxs"][0]["text"]) == ("an Ada", "no one")
    assert _mine(tmp_path, questions, distant_supervision=1, **settings).without_positive == 1
    assert [record["question"] for record in _records(tmp_path)] == ["where"]


@pytest.mark.parametrize("output_format", ["dpr", "tevatron", "flagembedding", "sentence-transformers"])
def test_training_data_for_other_tools_comes_back(tmp_path: Path, output_format: str) -> None:
    _mine(tmp_path, TRAIN, output_format=output_format)
    (tmp_path / "mined.json").rename(tmp_path / "there")
    there = list(read_biencoder(tmp_path / "there"))
    _mine(tmp_path, TRAIN)
    here = list(read_biencoder(tmp_path / "mined.json"))
    if output_format == "sentence-transformers":  # a triplet for each negative
        triplets = [(example.question, *example.positives, *example.hard_negatives) for example in there]
        assert triplets == [
            (example.question, *map(_untitled, (example.positives[0], negative)))
            for example in here
            for negative in example.hard_negatives
        ]
        return
    keep = _untitled if output_format == "flagembedding" else replace
    assert [(e.question, *e.positives, *e.hard_negatives) for e in there] == [
        (e.question, *map(keep, e.positives), *map(keep, e.hard_negatives)) for e in here
    ]


def _untitled(passage: Passage) -> Passage:
    return Passage("", "", f"{passage.title} {passage.text}")


def test_results_with_gaps(tmp_path: Path) -> None:
    """Pyserini's results leave out questions; so do TREC runs, which need the evidence for the texts."""
    contexts = [{"docid": "7", "score": 3.5, "text": '"A title"\nsomething'}]
    run = {"1": {"question": TRAIN[1]["question"], "answers": [], "contexts": contexts}}
    census = _mine(tmp_path, TRAIN, run)
    assert (census.written, census.without_hard_negative) == (2, 1)
    assert _records(tmp_path)[1]["hard_negative_ctxs"] == [
        {"title": "A title", "text": "something", "score": 3.5, "title_score": 0, "passage_id": "7"}
    ]
    with pytest.raises(ConfigError, match="stands elsewhere there"):
        _mine(tmp_path, TRAIN[:1], run)


def test_a_reranker_drops_what_it_scores_near_the_positive(tmp_path: Path) -> None:
    """Of the first six, in the order of its scores; the positive has a score though it was not found."""
    scores = {"Oslo": 8.0, "new": 9.0, "Lima": 3.0, "Riga": 6.5, "Bern": 5.0}

    def score(question: str, passages: Sequence[Passage]) -> torch.Tensor:
        return torch.tensor([scores[passage.text] for passage in passages])

    contexts = [_context(str(n), text) for n, text in enumerate(["Lima", "new", "Riga", "Bern", "unseen"], 2)]
    places = {"train": TRAIN[:1], "found": [{**FOUND[0], "ctxs": contexts}]}
    reranker = Reranker(score, depth=4)
    for rules, expected in (
        ({"margin": 1.0}, ["Riga", "Bern", "Lima"]),
        ({"margin": 1.6, "num_mined": 1}, ["Bern"]),
        ({"skip_ranks": 1, "max_rank": 3}, ["Riga", "Bern"]),
    ):
        _mine(tmp_path, **places, reranker=reranker, rules=MiningRulesConfig(**rules))
        (record,) = _records(tmp_path)
        assert [context["text"] for context in record["hard_negative_ctxs"]] == expected
    assert record["hard_negative_ctxs"][0]["score"] == 6.5
    with pytest.raises(ConfigError, match="in this process alone"):
        MineNegativesConfig(
            train_data=Path("t"), results=Path("r"), output=Path("o"), rerank=RerankConfig(rerank=Path("x")), workers=2
        )
    with pytest.raises(ConfigError, match="leave out --rerank-weight"):
        MineNegativesConfig(
            train_data=Path("t"), results=Path("r"), output=Path("o"), rerank=RerankConfig(rerank_weight=0.5)
        )


def test_bad_input_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="parts from them at 'who'"):
        _mine(tmp_path, TRAIN[1:])
    with pytest.raises(ConfigError, match="does not hold the questions"):
        _mine(tmp_path, [*TRAIN, TRAIN[0]])
    with pytest.raises(DataError, match="'high' is no score"):
        _mine(tmp_path, TRAIN[:1], [{**FOUND[0], "ctxs": [_context("1", "x", "high")]}])
    with pytest.raises(DataError, match="no question of the file has an answer"):
        _mine(tmp_path, "where\t['Bern']\n", name="train.qa.csv", distant_supervision=3)
    assert not (tmp_path / "mined.json").exists()


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({}, "one of --results and --bm25-index"),
        ({"results": "r", "bm25_index": "b"}, "one of --results and --bm25-index"),
        ({"bm25_index": "b"}, "--bm25-index and --evidence belong together"),
        ({"results": "r", "distant_supervision": 0}, "--distant-supervision 0"),
    ],
)
def test_settings_that_do_not_fit(places: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MineNegativesConfig(train_data=Path("t"), output=Path("o"), **places)
