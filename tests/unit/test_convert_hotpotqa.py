"""HotpotQA becomes passages, each once, with supporting paragraphs as positives and the others as hard negatives."""

from __future__ import annotations

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
from megatron_retrieval.errors import DataError

DATA = Path(os.environ.get("MEGATRON_RETRIEVAL_DATA", Path(__file__).parents[3] / "shared" / "data"))

RIVER = ["Rhône", ["The Rhône is a river. ", "It rises", " in Valais."]]
LONG = ["Valais", [" ".join(f"w{number}" for number in range(99)), " Sion is the capital.", " It is old."]]
LAKE = ["Geneva", ["Sion lies elsewhere.", " No lake."]]
TOWN = ["Sierre", ["A town."]]


def _question(number: int, answer: str, facts: list[Any], *context: list[Any]) -> dict[str, Any]:
    return {
        "_id": f"q{number}",
        "question": f"q {number}?",
        "answer": answer,
        "supporting_facts": facts,
        "context": context,
    }


QUESTIONS = [
    _question(0, "Sion", [["Rhône", 1], ["Valais", 1]], RIVER, LONG, LAKE, TOWN),
    _question(1, "no", [["Sierre", 0], ["Geneva", 7]], TOWN, LAKE, RIVER),
    _question(2, "Sion", [["Elsewhere", 0]], LONG),
]


def _convert(folder: Path, content: object, **settings: Any) -> Path:
    (folder / "hot.json").write_text(json.dumps(content))
    out = folder / "out"
    convert_dataset(
        DatasetConverterConfig(format="hotpotqa", input=(str(folder / "hot.json"),), output=str(out), **settings)
    )
    return out


def test_passages_questions_and_examples(tmp_path: Path) -> None:
    out = _convert(tmp_path, QUESTIONS)
    passages = {passage.id: passage for _, passage in read_passages(out / "psgs_w100.tsv")}
    assert [(passage.title, len(passage.text.split())) for passage in passages.values()] == [
        ("Rhône", 9), ("Valais", 100), ("Valais", 6), ("Geneva", 5), ("Sierre", 2),
    ]  # fmt: skip
    assert passages["1"].text == "The Rhône is a river. It rises in Valais."

    questions = list(read_questions(out / "hot.qa.csv"))
    assert [(question.text, question.answers) for question in questions] == [
        ("q 0?", ("Sion",)), ("q 1?", ("no",)), ("q 2?", ("Sion",)),
    ]  # fmt: skip
    first, second = read_biencoder(out / "biencoder-hot.json")  # the third has no supporting paragraph
    # the sentence about Sion runs across the cut; the passage with "Sion" is what training takes, Geneva's holds it too
    assert [passage.id for passage in first.positives] == ["2", "1", "3"]
    assert [passage.id for passage in first.hard_negatives] == ["5"]
    # "no" says nothing, be it found or not; a sentence beyond the end stands for the whole paragraph
    assert [passage.id for passage in second.positives] == ["5", "4"]
    assert [passage.id for passage in second.hard_negatives] == ["1"]
    for example in (first, second):
        assert all(passages[passage.id] == passage for passage in example.positives + example.hard_negatives)


def test_stride_keeps_all_passages(tmp_path: Path) -> None:
    out = _convert(tmp_path, QUESTIONS, question_stride=3, passage_words=50)
    assert [question.text for question in read_questions(out / "hot.qa.csv")] == ["q 0?"]
    assert sum(1 for _ in read_passages(out / "psgs_w50.tsv")) == 6


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "there are no questions in the file"),
        ({}, "expected a JSON list"),
        ([QUESTIONS[0] | {"context": [["Rhône"]]}], r"hot\.json:1: question q0: 'context' must be a list of"),
        ([QUESTIONS[0] | {"context": [["Rhône", [[3]]]]}], r"hot\.json:1: 'sentences' must be a list of strings"),
        ([QUESTIONS[0] | {"supporting_facts": [["Rhône", -1]]}], "question q0: 'supporting_facts' must be a list of"),
        ([{key: value for key, value in QUESTIONS[0].items() if key != "answer"}], "there is no 'answer'"),
        ([QUESTIONS[0] | {"context": [["\ud800", ["a"]]]}], "'title' holds half of a surrogate pair"),
    ],
)
def test_refusals(tmp_path: Path, content: object, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        _convert(tmp_path, content)
    assert [path.name for path in tmp_path.iterdir()] == ["hot.json"]


@pytest.mark.real_data
def test_hotpotqa_itself(tmp_path: Path) -> None:
    source = DATA / "hotpotqa" / "hotpot_train_sample300.json.gz"
    if not source.exists():
        pytest.skip(f"no HotpotQA in {DATA}")
    out = tmp_path / "out"
    convert_dataset(DatasetConverterConfig(format="hotpotqa", input=(str(source),), output=str(out)))
    passages = {passage.id: passage for _, passage in read_passages(out / "psgs_w100.tsv")}
    examples = list(read_biencoder(out / "biencoder-hotpot_train_sample300.json"))
    assert len(examples) == 300
    assert all(len({passage.title for passage in example.positives}) == 2 for example in examples)
    assert all(passages[passage.id] == passage for example in examples for passage in example.hard_negatives)
