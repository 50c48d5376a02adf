"""PopQA and NQ-open become the question files that every task reads."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from megatron_retrieval.data.convert.registry import DatasetConverterConfig
from megatron_retrieval.data.convert.run import convert_dataset
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.files.resources import find_resource
from megatron_retrieval.errors import DataError

DATA = Path(os.environ.get("MEGATRON_RETRIEVAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
POPQA = (
    "id\tsubj\ts_pop\ts_aliases\tquestion\tpossible_answers\n"
    '7\t1984\t240\t"[""A \\u00e9""]"\tWho wrote ""1984""?\t"[""Orwell"", ""a \\""b\\""""]"\n'
    '8\t[Rec]\t12\t[]\tWho directed it?\t"[""Plaza""]"\n'
).replace('Who wrote ""1984""?', '"Who wrote ""1984""?"')


def _convert(format: str, source: Path, out: Path, stride: int = 1) -> None:
    config = DatasetConverterConfig(format=format, input=(str(source),), output=str(out), question_stride=stride)  # type: ignore[arg-type]
    convert_dataset(config)


def test_popqa_keeps_what_it_knows(tmp_path: Path) -> None:
    (tmp_path / "pop.tsv").write_text(POPQA, "utf-8")
    _convert("popqa", tmp_path / "pop.tsv", tmp_path / "out")
    table, lines = (list(read_questions(tmp_path / "out" / f"pop.{kind}")) for kind in ("qa.csv", "jsonl"))
    assert [question.answers for question in table] == [("Orwell", 'a "b"'), ("Plaza",)]
    assert [question.text for question in lines] == ['Who wrote "1984"?', "Who directed it?"]
    assert [(q.text, q.answers) for q in table] == [(q.text, q.answers) for q in lines]
    assert [question.id for question in lines] == ["7", "8"]
    records = [json.loads(line) for line in (tmp_path / "out" / "pop.jsonl").read_text("utf-8").splitlines()]
    assert records[0] == {
        "id": "7", "subj": "1984", "s_pop": 240, "s_aliases": ["A é"], "question": 'Who wrote "1984"?',
        "answers": ["Orwell", 'a "b"'],
    }  # fmt: skip
    assert records[1]["subj"] == "[Rec]"
    _convert("popqa", tmp_path / "pop.tsv", tmp_path / "half", stride=2)
    assert [question.id for question in read_questions(tmp_path / "half" / "pop.jsonl")] == ["7"]


@pytest.mark.parametrize(
    ("format", "content", "problem"),
    [
        ("popqa", "id\tquestion\n1\ta\n", r"in\.x:1: the header has no column 'possible_answers'"),
        ("popqa", "question\tpossible_answers\na\n", r"in\.x:2: expected 2 fields, found 1"),
        ("popqa", "question\tpossible_answers\na\t['b']\n", r"in\.x:2: 'possible_answers' is no JSON"),
        ("popqa", 'question\tpossible_answers\na\t"""b"""\n', r"in\.x:2: 'possible_answers' must be a list of strings"),
        ("popqa", "question\tpossible_answers\na\t[[1]]\n", r"in\.x:2: 'possible_answers' must be a list of strings"),
        ("popqa", "question\tpossible_answers\n", r"in\.x: there are no questions in the file"),
        ("nq-open", '{"question": "a", "answer": ["b"]}\n{"question": "a"}\n', r"in\.x:2: there is no 'answer'"),
        ("nq-open", '{"question": "a", "answer": [[1]]}\n', r"in\.x:1: 'answer' must be a list of strings"),
        ("nq-open", "\n", r"in\.x: there are no questions in the file"),
    ],
)
def test_refusals(tmp_path: Path, format: str, content: str, problem: str) -> None:
    (tmp_path / "in.x").write_text(content)
    with pytest.raises(DataError, match=problem):
        _convert(format, tmp_path / "in.x", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nq_open(tmp_path: Path) -> None:
    lines = [{"question": "what\tis it", "answer": ["a", "it's"]}, {"question": "b", "answer": ["c"]}]
    (tmp_path / "NQ-open.dev.jsonl").write_text("\n".join(map(json.dumps, lines)))
    _convert("nq-open", tmp_path / "NQ-open.dev.jsonl", tmp_path / "out")
    questions = list(read_questions(tmp_path / "out" / "NQ-open.dev.qa.csv"))
    assert [(question.text, question.answers) for question in questions] == [
        ("what\tis it", ("a", "it's")),
        ("b", ("c",)),
    ]


@pytest.mark.real_data
def test_json_lines_become_the_very_file_of_dpr(tmp_path: Path) -> None:
    if not DATA.exists():
        pytest.skip(f"no data in {DATA}")
    _convert("nq-open", DATA / "dpr_questions" / "webq-test.jsonl", tmp_path / "out")
    content = (tmp_path / "out" / "webq-test.qa.csv").read_bytes()
    (published,) = find_resource("webq-questions").files
    assert published.expected.problem(len(content), hashlib.sha256(content).hexdigest()) == ""


@pytest.mark.real_data
def test_popqa_itself(tmp_path: Path) -> None:
    if not DATA.exists():
        pytest.skip(f"no data in {DATA}")
    _convert("popqa", DATA / "popqa" / "popQA_sample200.tsv", tmp_path / "out")
    assert len(list(read_questions(tmp_path / "out" / "popQA_sample200.qa.csv"))) == 200


def test_a_sentence_asks_for_the_rest_of_its_passage(tmp_path: Path) -> None:
    rows = ["id\ttext\ttitle", "1\tOne is here. Two is there. Three is far.\tPlaces", "2\tOne alone.\tNone"]
    (tmp_path / "passages.tsv").write_text("\n".join(rows) + "\n")
    _convert("sentence-pairs", tmp_path / "passages.tsv", tmp_path / "out")
    (record,) = json.loads((tmp_path / "out" / "biencoder-passages.json").read_text())
    (positive,) = record["positive_ctxs"]
    assert positive["title"] == "Places"
    sentences = ["One is here.", "Two is there.", "Three is far."]
    assert record["question"] in sentences
    sentences.remove(record["question"])
    assert positive["text"] == " ".join(sentences)
    (tmp_path / "short.tsv").write_text("id\ttext\ttitle\n1\tOne alone.\tNone\n")
    with pytest.raises(DataError, match="no passage has two sentences"):
        _convert("sentence-pairs", tmp_path / "short.tsv", tmp_path / "none")
