"""Files as the field's tools write them: read where they stand, with their own ids, or refused with what is wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_retrieval.data.files.document_files import read_documents
from megatron_retrieval.data.files.dpr_json import biencoder_context
from megatron_retrieval.data.files.names import COLUMNS
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig, read_reader_questions
from megatron_retrieval.data.files.question_files import read_questions, require_distinct_ids
from megatron_retrieval.data.files.training_files import read_biencoder
from megatron_retrieval.data.files.training_formats import write_training_data
from megatron_retrieval.data.files.trec import read_qrels, read_run
from megatron_retrieval.errors import DataError
from megatron_retrieval.types.questions import Passage, Question

LAKE, TOWER = "the blue lake is located in the north", "the red tower was built by the old king"
WHERE, WHO = "where is the blue lake", "who built the red tower"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:fedc\nsize 13000000000\n"


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


PASSAGES = [
    ("BEIR", "corpus.jsonl", f'{{"_id": "LAKE-10", "title": "blue lake", "text": "{LAKE}", "metadata": {{}}}}'),
    ("Tevatron", "corpus.jsonl", f'{{"docid": "LAKE-10", "title": "blue lake", "text": "{LAKE}"}}'),
    ("Pyserini", "docs.jsonl", f'{{"id": "LAKE-10", "contents": "\\"blue lake\\"\\n{LAKE}"}}'),
    ("a JSON list", "corpus.json", f'[{{"_id": "LAKE-10", "title": "blue lake", "text": "{LAKE}"}}]'),
    ("pandas", "corpus.csv", f'_id,title,text\nLAKE-10,blue lake,"{LAKE}"\n'),
    ("semicolons", "corpus.csv", f"text;title;docid\n{LAKE};blue lake;LAKE-10\n"),
    ("bars", "corpus.csv", f'"id"|"title"|"text"\nLAKE-10|blue lake|{LAKE}\n'),
    ("tabs", "unnamed", f'docid\ttitle\ttext\nLAKE-10\t"blue lake"\t{LAKE}\n'),
]


@pytest.mark.parametrize(("name", "content"), [row[1:] for row in PASSAGES], ids=[row[0] for row in PASSAGES])
def test_passages_keep_their_ids(file: Callable[[str, str], Path], name: str, content: str) -> None:
    assert [passage for _, passage in read_passages(file(name, content))] == [Passage("LAKE-10", "blue lake", LAKE)]


@pytest.mark.parametrize("title", ["", '"title": null, ', '"title": "", ', '"title": NaN, '])
def test_a_passage_without_a_title(file: Callable[[str, str], Path], title: str) -> None:
    path = file("a.jsonl", f'{{"id": "7", {title}"text": "{LAKE}"}}\n')
    assert list(read_passages(path)) == [(1, Passage("7", "", LAKE))]


def test_the_collection_of_ms_marco(file: Callable[[str, str], Path]) -> None:
    """Two columns without a header, whose quotes are characters."""
    path = file("collection.tsv", '0\tthe lake\n1\t"old" is what\n2\t12" long\n')
    assert [passage for _, passage in read_passages(path)] == [
        Passage("0", "", "the lake"),
        Passage("1", "", '"old" is what'),
        Passage("2", "", '12" long'),
    ]


def test_columns_of_a_table_without_a_header(file: Callable[[str, str], Path]) -> None:
    path = file("my_knowledge.csv", f'blue lake\t{LAKE}\n"old" tower\t{TOWER}\n')
    assert [passage for _, passage in read_passages(path, ("title", "text"))] == [
        Passage("my_knowledge:1", "blue lake", LAKE),
        Passage("my_knowledge:2", '"old" tower', TOWER),
    ]
    with pytest.raises(DataError, match=r"my_knowledge.csv:1: the file has no header.* --columns title text"):
        list(read_passages(path))


def test_a_field_of_any_length(file: Callable[[str, str], Path]) -> None:
    text = "long " * 40_000
    assert next(read_passages(file("a.tsv", f"id\ttext\ttitle\n1\t{text}\tT\n")))[1].text == text


QUESTIONS = [
    ("BEIR", "q.jsonl", f'{{"_id": "Q-1", "text": "{WHERE}", "metadata": {{}}}}\n', ()),
    ("MS MARCO", "q.tsv", f"Q-1\t{WHERE}\n", ()),
    ("Tevatron", "q.jsonl", f'{{"query_id": "Q-1", "query": "{WHERE}", "answers": ["north"]}}\n', ("north",)),
    ("header", "q.tsv", f'qid\tquestion\tanswers\nQ-1\t{WHERE}\t["north"]\n', ("north",)),
    ("pandas", "q.csv", f"id,question,answers\nQ-1,{WHERE},\"['north', 'up']\"\n", ("north", "up")),
    ("one answer", "q.csv", f"id,question,answer\nQ-1,{WHERE},north\n", ("north",)),
    ("NumPy", "q.csv", f"id;question;answers\nQ-1;{WHERE};array(['north'], dtype=object)\n", ("north",)),
    ("SQuAD rows", "q.jsonl", f'{{"id": "Q-1", "question": "{WHERE}", "answers": {{"text": ["north"]}}}}', ("north",)),
    ("KILT", "q.jsonl", f'{{"id": "Q-1", "input": "{WHERE}", "output": [{{"answer": "north"}}, {{}}]}}', ("north",)),
    ("TREC", "topics", f"<top>\n<num> Number: Q-1\n<title> {WHERE}\n\n<desc> Description:\nmore\n</top>\n", ()),
]


@pytest.mark.parametrize(
    ("name", "content", "answers"), [row[1:] for row in QUESTIONS], ids=[row[0] for row in QUESTIONS]
)
def test_questions_keep_their_ids(
    file: Callable[[str, str], Path], name: str, content: str, answers: tuple[str, ...]
) -> None:
    assert list(read_questions(file(name, content))) == [Question("Q-1", WHERE, answers)]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (r"how long	['\b12\s*miles\b']", "backslash"),
        (r"how long	['(\d+) \1']", "backslash"),
        ("how long\t['a' 'b']", "without a comma"),
        ("where,['north']", "Commas divide fields only where a header"),
        (LFS, "LFS"),
    ],
)
def test_questions_that_would_be_read_wrong(file: Callable[[str, str], Path], content: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        list(read_questions(file("a.qa.csv", content + "\n")))


def test_a_regular_expression_that_is_read_right(file: Callable[[str, str], Path]) -> None:
    path = file("a.qa.csv", "how long\t[\"\\\\b12\\\\s*miles\\\\b\", 'it\\'s 12', '\\d+']\n")
    assert next(read_questions(path)).answers == (r"\b12\s*miles\b", "it's 12", r"\d+")


def test_a_pointer_of_git_lfs_is_no_passage_file(file: Callable[[str, str], Path]) -> None:
    with pytest.raises(DataError, match="LFS"):
        list(read_passages(file("psgs_w100.tsv", LFS)))


TRAINING = [
    ("Tevatron", {"query": WHERE, "positive_passages": [{"text": LAKE}], "negative_passages": [{"text": TOWER}]}),
    ("FlagEmbedding", {"query": WHERE, "pos": [LAKE], "neg": [TOWER], "pos_scores": [0.9], "neg_scores": [0.1]}),
    ("triplets", {"anchor": WHERE, "positive": LAKE, "negative": TOWER}),
    ("n-tuples", {"query": WHERE, "positive": LAKE, "negative_1": TOWER, "score": [1.0, 0.2]}),
    ("labels", {"query": WHERE, "docs": [TOWER, LAKE], "labels": [0, 1]}),
    ("null", {"question": WHERE, "positive_ctxs": [{"text": LAKE}], "hard_negative_ctxs": None, "answers": None}),
]


@pytest.mark.parametrize("record", [row[1] for row in TRAINING], ids=[row[0] for row in TRAINING])
@pytest.mark.parametrize("is_list", [False, True])
def test_training_data(file: Callable[[str, str], Path], record: dict[str, object], is_list: bool) -> None:
    (example,) = read_biencoder(file("train", json.dumps([record] if is_list else record)))
    assert (example.question, example.answers) == (WHERE, ())
    assert [passage.text for passage in example.positives] == [LAKE]
    assert [passage.text for passage in example.hard_negatives] == ([] if "positive_ctxs" in record else [TOWER])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("triples.tsv", f"{WHERE}\t{LAKE}\t{TOWER}\n"),
        ("triples.csv", f"anchor,positive,negative\n{WHERE},{LAKE},{TOWER}\n"),
        ("pairs.csv", f"query,passage,label\n{WHERE},{LAKE},1\n{WHERE},{TOWER},0\n"),
    ],
)
def test_tables_of_training_data(file: Callable[[str, str], Path], name: str, content: str) -> None:
    (example,) = read_biencoder(file(name, content))
    assert [passage.text for passage in (*example.positives, *example.hard_negatives)] == [LAKE, TOWER]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"qid": 1, "pos": [7], "neg": {"bm25": [8]}}', "names passages by their ids"),
        ("1\t2\t3", "names passages by their ids"),
        ('{"anchor": "a", "passage": "b", "label": 0.5}', "neither 0 nor 1"),
        ('{"question": "a", "answers": ["b"]}', "there is no 'positive_ctxs'"),
    ],
)
def test_training_data_without_texts(file: Callable[[str, str], Path], content: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        list(read_biencoder(file("train", content + "\n")))


def test_numbers_that_pandas_writes(file: Callable[[str, str], Path]) -> None:
    contexts = [{"text": LAKE, "passage_id": 2.0}, {"text": TOWER, "passage_id": None}]
    record = {"question": WHO, "answers": [1983, 2.0, "king"], "positive_ctxs": contexts}
    (example,) = read_biencoder(file("train", json.dumps([record])))
    assert example.answers == ("1983", "2", "king")
    assert [passage.id for passage in example.positives] == ["2", ""]
    with pytest.raises(DataError, match="a float, which rounds"):
        list(read_passages(file("a.jsonl", '{"id": 1e17, "text": "a"}\n')))


def test_results_of_pyserini(file: Callable[[str, str], Path]) -> None:
    contexts = [{"docid": 1, "score": 9.5, "text": f'"blue lake"\n{LAKE}', "has_answer": True}]
    run = {"0": {"question": WHERE, "answers": ["north"], "contexts": contexts}}
    (question,) = read_reader_questions(file("run.json", json.dumps(run, indent=1)), PassagesToReadConfig())
    assert (question.id, question.answers, question.scores) == ("0", ("north",), (9.5,))
    assert question.passages == (Passage("1", "blue lake", LAKE),)


def test_pages_of_kilt_are_documents(file: Callable[[str, str], Path]) -> None:
    page = {"_id": "1", "wikipedia_title": "blue lake", "text": ["blue lake\n", LAKE]}
    (document,) = read_documents(file("kilt.json", json.dumps(page)))
    assert (document.title, document.paragraphs) == ("blue lake", ("blue lake", LAKE))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.tsv", "query-id\tcorpus-id\tscore\nq 1\t<d:1>\t2\nq 1\tb\t0\n"),
        (
            "test.jsonl",
            '{"query-id": "q 1", "corpus-id": "<d:1>", "score": 2}\n{"query-id": "q 1", "docid": "b", "score": 0.0}',
        ),
    ],
)
def test_judgements(file: Callable[[str, str], Path], name: str, content: str) -> None:
    assert read_qrels(file(name, content)) == {"q 1": {"<d:1>": 2, "b": 0}}


def test_judgements_of_trec(file: Callable[[str, str], Path]) -> None:
    assert read_qrels(file("qrels", "1 0 a 2\n1\t0\tb\t-1\n1 0 a 2\n")) == {"1": {"a": 2, "b": -1}}
    with pytest.raises(DataError, match="qrels:2: 'a' is judged twice"):
        read_qrels(file("qrels", "1 0 a 2\n1 0 a 1\n"))
    with pytest.raises(DataError, match="qrels:1: 'high' is no grade"):
        read_qrels(file("qrels", "1 0 a high\n"))


def test_runs(file: Callable[[str, str], Path]) -> None:
    path = file("run", "q Q0 b 2 0.5 tag\nq Q0 a 1 1e1 tag\np Q0 a 1 3 tag\n")
    assert list(read_run(path)) == [("q", [("a", 10.0), ("b", 0.5)]), ("p", [("a", 3.0)])]
    with pytest.raises(DataError, match="run:3: the question 'q' begins a second time"):
        list(read_run(file("run", "q Q0 a 1 1 t\np Q0 a 1 1 t\nq Q0 b 1 1 t\n")))


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


def test_an_id_given_twice_is_never_merged(file: Callable[[str, str], Path]) -> None:
    path = file("q.jsonl", '{"_id": "2", "text": "a"}\n{"text": "b"}\n')
    with pytest.raises(DataError, match="two questions have the id '2'"):
        require_distinct_ids(path, read_questions(path))


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
