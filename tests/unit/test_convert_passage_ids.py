"""Training data by ids gets its texts: judgements, triples, and hard negatives of several systems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_retrieval.data.convert.registry import DatasetConverterConfig
from megatron_retrieval.data.convert.run import convert_dataset
from megatron_retrieval.data.files.training_files import read_biencoder
from megatron_retrieval.errors import ConfigError, DataError

QUERIES = "7\twhere\n8\twho\n"
CORPUS = "".join(f"{number}\ttext {number}\n" for number in range(6))


def _convert(folder: Path, name: str, content: str, **settings: Any) -> list[tuple[str, list[str], list[str]]]:
    for file, text in ((name, content), ("queries.tsv", QUERIES), ("corpus.tsv", CORPUS)):
        (folder / file).write_text(text)
    places: dict[str, Any] = {"queries": str(folder / "queries.tsv"), "corpus": (str(folder / "corpus.tsv"),)}
    places |= {"format": "passage-ids", "input": (str(folder / name),), "output": str(folder / "out")}
    convert_dataset(DatasetConverterConfig(**{**places, **settings}))
    examples = read_biencoder(folder / "out" / f"biencoder-{name.split('.')[0]}.json")
    return [
        (example.question, [p.id for p in example.positives], sorted(p.id for p in example.hard_negatives))
        for example in examples
    ]


MINED = {"qid": 7, "pos": [1], "neg": {"bm25": [2, 3], "dense": [3, 9]}}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "qrels.tsv",
            "7\t0\t1\t1\n7\t0\t2\t0\n8\t0\t4\t2\n9\t0\t1\t1\n",
            [("where", ["1"], ["2"]), ("who", ["4"], [])],
        ),
        ("test.tsv", "query-id\tcorpus-id\tscore\n7\t1\t1\n8\t9\t1\n", [("where", ["1"], [])]),
        ("triples.tsv", "7\t1\t2\n7\t1\t3\n8\t4\t5\n", [("where", ["1"], ["2", "3"]), ("who", ["4"], ["5"])]),
        ("mined.jsonl", json.dumps(MINED), [("where", ["1"], ["2", "3"])]),
    ],
)
def test_ids_become_texts(tmp_path: Path, name: str, content: str, expected: list[Any]) -> None:
    assert _convert(tmp_path, name, content) == expected
    record = json.loads((tmp_path / "out" / f"biencoder-{name.split('.')[0]}.json").read_text())[0]
    assert (record["id"], record["positive_ctxs"][0]["text"]) == ("7", "text 1")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no question has a positive passage"):
        _convert(tmp_path, "qrels.tsv", "7 0 9 1\n")
    with pytest.raises(DataError, match="the id '0' is used twice"):
        _convert(tmp_path, "qrels.tsv", "7 0 1 1\n", corpus=(str(tmp_path / "corpus.tsv"),) * 2)
    with pytest.raises(ConfigError, match="--queries and --corpus"):
        _convert(tmp_path, "qrels.tsv", "7 0 1 1\n", queries=None)
    assert not (tmp_path / "out").exists()
