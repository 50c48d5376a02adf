"""A converter of one file outside the package serves the real commands: its format becomes evidence and questions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import ROOT

from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.files.training_files import read_biencoder
from megatron_retrieval.data.stores.evidence import EvidenceStore

EXTENSION = str(Path(__file__).parent / "extensions" / "mine_converter.py")
LINES = [
    f"City {number} | The river of city {number} is called Water{number} and it is long | Which river? | Water{number}"
    for number in range(40)
]


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted data set, in `data`, and a vocabulary."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "toy.txt").write_text("\n".join(LINES))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "river", "city"]))
    done = _run(
        "tools/convert_dataset.py",
        *("--extensions", EXTENSION, "--format", "mine", "--input", folder / "toy.txt"),
        *("--passage-words", 6, "--output", folder / "data"),
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_its_output_is_complete(folder: Path) -> None:
    assert sorted(file.name for file in (folder / "data").iterdir()) == [
        "biencoder-toy.json", "psgs_w6.tsv", "toy.qa.csv",
    ]  # fmt: skip
    questions = read_questions(folder / "data" / "toy.qa.csv")
    assert [question.answers for question in questions] == [(f"Water{number}",) for number in range(40)]
    example = next(read_biencoder(folder / "data" / "biencoder-toy.json"))
    assert [passage.text for passage in example.positives] == ["called Water0 and it is long"]
    assert [passage.text for passage in example.hard_negatives] == ["The river of city 0 is"]


@pytest.mark.parametrize("workers", [1, 2])
def test_its_output_becomes_evidence(folder: Path, workers: int) -> None:
    built = _run(
        "tools/build_evidence.py",
        *("--input", folder / "data" / "psgs_w6.tsv", "--vocab-file", folder / "vocab.txt"),
        *("--workers", workers, "--output", folder / f"evidence{workers}"),
    )
    assert built.returncode == 0, built.stderr
    evidence = EvidenceStore(folder / f"evidence{workers}")
    assert len(evidence) == 80
    assert evidence.passage(3).title == "City 1"
    assert json.loads((evidence.folder / "manifest.json").read_text())["num_passages"] == 80


def test_help_lists_it_beside_the_others(folder: Path) -> None:
    shown = _run("tools/convert_dataset.py", "--extensions", EXTENSION, "--help").stdout
    assert "mine: lines of title | text | question | answer" in shown
    assert "squad: SQuAD JSON" in shown


def test_without_the_extension_its_name_is_refused(folder: Path) -> None:
    refused = _run(
        *("tools/convert_dataset.py", "--format", "mine", "--input", folder / "toy.txt", "--output", folder / "none")
    )
    assert refused.returncode == 2
    assert "invalid choice 'mine'" in refused.stderr
    assert not (folder / "none").exists()
