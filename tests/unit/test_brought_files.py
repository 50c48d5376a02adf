"""Files as the field's tools write them: read where they stand, with their own ids, or refused with what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_retrieval.data.files.document_files import read_documents
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig, read_reader_questions
from megatron_retrieval.data.files.question_files import read_questions, require_distinct_ids
from megatron_retrieval.data.files.training_files import read_biencoder
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


def test_an_id_given_twice_is_never_merged(file: Callable[[str, str], Path]) -> None:
    path = file("q.jsonl", '{"_id": "2", "text": "a"}\n{"text": "b"}\n')
    with pytest.raises(DataError, match="two questions have the id '2'"):
        require_distinct_ids(path, read_questions(path))
