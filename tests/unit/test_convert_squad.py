"""SQuAD becomes passages, questions and training data that the project's own readers take."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from megatron_retrieval.data.convert.registry import DatasetConverterConfig
from megatron_retrieval.data.convert.run import convert_dataset
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.files.training_files import read_biencoder
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.utils.answer_text import normalized

DATA = Path(os.environ.get("MEGATRON_RETRIEVAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def _qa(number: int, question: str, *answers: str) -> dict[str, Any]:
    return {"id": f"q{number}", "question": question, "answers": [{"text": answer} for answer in answers]}


LONG = " ".join(f"w{number}" for number in range(250))
DOCUMENT = {
    "data": [
        {
            "title": "Long_river",
            "paragraphs": [
                {
                    "context": LONG.replace("w150", "The  Rhône,\nW150"),
                    "qas": [
                        _qa(0, "Which river?", "the Rhône", "Rhône", "the Rhône"),
                        _qa(1, "Across a cut?", "w99 w100"),
                        _qa(2, "Twice?", "w7"),
                    ],
                },
                {"context": "w7 is here too.", "qas": [_qa(3, "Where is w7?", "w7")]},
            ],
        },
        {"title": "Other", "paragraphs": [{"context": "Nothing else.", "qas": [_qa(4, "What?", "nothing")]}]},
    ]
}


def _convert(folder: Path, *documents: tuple[str, dict[str, Any]], **settings: Any) -> Path:
    for name, document in documents:
        (folder / name).write_bytes(gzip.compress(json.dumps(document).encode()))
    inputs = tuple(str(folder / name) for name, _ in documents)
    convert_dataset(DatasetConverterConfig(format="squad", input=inputs, output=str(folder / "out"), **settings))
    return folder / "out"


def test_windows_questions_and_examples(tmp_path: Path) -> None:
    out = _convert(tmp_path, ("a.json.gz", DOCUMENT), ("b.json.gz", DOCUMENT))
    passages = [passage for _, passage in read_passages(out / "psgs_w100.tsv")]
    assert [passage.id for passage in passages] == [str(number) for number in range(1, 11)]
    assert [passage.title for passage in passages[:5]] == ["Long river"] * 4 + ["Other"]
    assert [len(passage.text.split()) for passage in passages[:5]] == [100, 100, 52, 4, 2]

    questions = list(read_questions(out / "b.qa.csv"))
    assert [question.text for question in questions] == [
        "Which river?", "Across a cut?", "Twice?", "Where is w7?", "What?",
    ]  # fmt: skip
    assert questions[0].answers == ("the Rhône", "Rhône")

    examples = {example.question: example for example in read_biencoder(out / "biencoder-b.json")}
    assert examples.keys() == {question.text for question in questions} - {"Across a cut?"}
    assert [example.positives[0].id for example in examples.values()] == ["7", "6", "9", "10"]
    by_id = {passage.id: passage for passage in passages}
    for example in examples.values():
        assert example.positives[0] == by_id[example.positives[0].id]
        assert all(by_id[negative.id] == negative for negative in example.hard_negatives)
        assert not any(normalized(example.answers[0]) in normalized(p.text) for p in example.hard_negatives)
    negatives = {question: sorted(p.id for p in example.hard_negatives) for question, example in examples.items()}
    assert negatives == {
        "Which river?": ["6", "8", "9"],
        "Twice?": ["7", "8"],
        "Where is w7?": ["7", "8"],
        "What?": [],
    }
    assert next(read_questions(out / "biencoder-b.json")).gold_passage_ids == ("7",)


def test_stride_negatives_and_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="megatron_retrieval"):
        out = _convert(tmp_path, ("a.json", DOCUMENT), question_stride=3, num_hard_negatives=1)
    assert [question.text for question in read_questions(out / "a.qa.csv")] == ["Which river?", "Where is w7?"]
    assert [len(e.hard_negatives) for e in read_biencoder(out / "biencoder-a.json")] == [1, 1]
    assert "a: 2 questions, 2 of them with a positive passage" in caplog.text


def test_seed_chooses_the_negatives(tmp_path: Path) -> None:
    contents = []
    for folder, seed in (("x", 1), ("y", 1), ("z", 2)):
        (tmp_path / folder).mkdir()
        out = _convert(tmp_path / folder, ("a.json", DOCUMENT), seed=seed, num_hard_negatives=2)
        contents.append((out / "biencoder-a.json").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no 'data'"):
        _convert(tmp_path, ("a.json", {"version": "1.1"}))
    broken = {"data": [{"title": "T", "paragraphs": [{"qas": []}]}]}
    with pytest.raises(DataError, match="there is no 'context'"):
        _convert(tmp_path, ("a.json", broken))
    with pytest.raises(ConfigError, match="different names"):
        _convert(tmp_path, ("a.json", DOCUMENT), ("a.json.gz", DOCUMENT))
    with pytest.raises(ConfigError, match="--question-stride"):
        DatasetConverterConfig(format="squad", input=("a",), output="b", question_stride=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.real_data
def test_squad_itself(tmp_path: Path) -> None:
    source = DATA / "squad" / "dev-v1.1.json.gz"
    if not source.exists():
        pytest.skip(f"no SQuAD in {DATA}")
    out = str(tmp_path / "out")
    convert_dataset(DatasetConverterConfig(format="squad", input=(str(source),), output=out, question_stride=5))
    assert sum(1 for _ in read_passages(tmp_path / "out" / "psgs_w100.tsv")) == 3_526
    assert len(list(read_questions(tmp_path / "out" / "dev-v1.1.qa.csv"))) == 2_114


def test_unanswerable_questions_and_missing_titles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SQuAD 2.0's questions without an answer are no misses of a retriever; annotation tools write numbers as ids and
    no titles."""
    impossible = {**_qa(2, "Who owns it?"), "is_impossible": True, "plausible_answers": [{"text": "north"}]}
    qas = [{**_qa(1, "Where is it?", "north"), "id": 1, "is_impossible": False}, impossible]
    document = {"data": [{"paragraphs": [{"context": "It lies in the north.", "document_id": 5, "qas": qas}]}]}
    with caplog.at_level("INFO", logger="megatron_retrieval"):
        out = _convert(tmp_path, ("a.json.gz", document))
    assert "1 unanswerable questions left out" in caplog.text
    assert [question.answers for question in read_questions(out / "a.qa.csv")] == [("north",)]
    assert [passage.title for _, passage in read_passages(out / "psgs_w100.tsv")] == [""]
