"""Files as the field's tools write them, generated: what goes in comes out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_retrieval.data.files.dpr_json import biencoder_context
from megatron_retrieval.data.files.names import COLUMNS
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.files.training_files import read_biencoder
from megatron_retrieval.data.files.training_formats import write_training_data
from megatron_retrieval.data.files.trec import read_qrels
from megatron_retrieval.errors import DataError
from megatron_retrieval.types.questions import Passage, Question

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
plain_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
#: a first row without a header that holds a column's name would be one
identifiers = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12).filter(
    lambda name: name not in COLUMNS
)
passages = st.lists(st.builds(Passage, identifiers, texts, texts), min_size=1, max_size=4)


def _csv_field(text: str) -> str:
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def _write(kind: str, items: list[Passage]) -> bytes:
    rows = [{"_id": item.id, "title": item.title, "text": item.text} for item in items]
    if kind == "lines":
        return "\n".join(map(json.dumps, rows)).encode()
    if kind == "list":
        return b"\xef\xbb\xbf" + json.dumps(rows, ensure_ascii=False, indent=1).encode()
    table = [",".join(rows[0]), *(",".join(map(_csv_field, row.values())) for row in rows)]
    return gzip.compress("\n".join(table).encode())


@pytest.mark.parametrize("kind", ["lines", "list", "table"])
@settings(max_examples=60, deadline=None)
@given(items=passages)
def test_what_goes_in_comes_out(tmp_path_factory: pytest.TempPathFactory, kind: str, items: list[Passage]) -> None:
    path = tmp_path_factory.getbasetemp() / f"generated-{kind}.csv"
    path.write_bytes(_write(kind, items))
    assert [passage for _, passage in read_passages(path)] == items


questions = st.lists(
    st.builds(Question, identifiers, texts, st.lists(plain_texts, min_size=1, max_size=2, unique=True).map(tuple)),
    min_size=1,
    max_size=3,
)


def _write_questions(kind: str, items: list[Question]) -> str:
    if kind == "table":
        rows = ([item.id, item.text, json.dumps(item.answers)] for item in items)
        return "id,question,answers\n" + "".join(",".join(map(_csv_field, row)) + "\n" for row in rows)
    if kind == "KILT":
        found = [
            {"id": item.id, "input": item.text, "output": [{"answer": text} for text in item.answers]} for item in items
        ]
    else:
        found = [{"_id": item.id, "question": item.text, "answers": item.answers} for item in items]
    return "\n".join(json.dumps(row, ensure_ascii=kind == "KILT") for row in found)


@pytest.mark.parametrize("kind", ["lines", "KILT", "table"])
@settings(max_examples=60, deadline=None)
@given(items=questions)
def test_questions_come_out_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, kind: str, items: list[Question]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"generated-questions-{kind}.csv"
    path.write_text(_write_questions(kind, items), encoding="utf-8", newline="")
    assert list(read_questions(path)) == items


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(identifiers, plain_texts), min_size=1, max_size=4))
def test_plain_tables_keep_every_character(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "generated.tsv"
    path.write_text("".join(f"Q{name}\t-{text}\n" for name, text in rows), encoding="utf-8", newline="")
    assert [(passage.id, passage.text) for _, passage in read_passages(path)] == [(f"Q{a}", f"-{b}") for a, b in rows]
    assert [(question.id, question.text) for question in read_questions(path)] == [(f"Q{a}", f"-{b}") for a, b in rows]


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_parquet_and_arrow(tmp_path: Path, kind: str) -> None:
    """As Hugging Face's `datasets` writes them: Parquet on the hub, Arrow streams on the disk."""
    arrow = pytest.importorskip("pyarrow", reason="needs the extra 'arrow'")
    rows = [{"_id": f"d{number}", "title": None, "text": f"{number} 北\n"} for number in range(3000)]
    table, path = arrow.Table.from_pylist(rows), tmp_path / "data"
    if kind == "parquet":
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    else:
        with getattr(arrow.ipc, f"new_{kind}")(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
    assert list(read_passages(path)) == [
        (number + 1, Passage(f"d{number}", "", f"{number} 北\n")) for number in range(3000)
    ]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="broken"):
        list(read_passages(path))


@pytest.mark.parametrize("form", ["dpr", "tevatron"])
@settings(max_examples=30, deadline=None)
@given(questions=st.lists(st.tuples(texts, passages, passages), min_size=1, max_size=3))
def test_training_data_comes_out_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, form: str, questions: list[tuple[str, list[Passage], list[Passage]]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "generated-training"
    records = [
        {
            "question": question,
            "answers": [question],
            "positive_ctxs": [biencoder_context(passage, 1.0) for passage in positives],
            "hard_negative_ctxs": [biencoder_context(passage, 0.0) for passage in negatives],
        }
        for question, positives, negatives in questions
    ]
    write_training_data(path, records, form)
    read = [(e.question, list(e.positives), list(e.hard_negatives)) for e in read_biencoder(path)]
    assert read == questions


@settings(max_examples=30, deadline=None)
@given(qrels=st.dictionaries(identifiers, st.dictionaries(identifiers, st.integers(-1, 3), min_size=1), min_size=1))
def test_judgements_come_out_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, qrels: dict[str, dict[str, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "generated-qrels"
    rows = [(question, name, grade) for question, grades in qrels.items() for name, grade in grades.items()]
    for form in ("{} 0 {} {}\n", "{}\t{}\t{}\n"):
        path.write_text("".join(form.format(*row) for row in rows), encoding="utf-8")
        assert read_qrels(path) == qrels
