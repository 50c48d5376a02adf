"""The Python interface: its examples run, it does what the commands do, and it costs nothing until it is used."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from programs import ROOT, command, run, succeed

from megatron_retrieval import Reader, Retriever
from megatron_retrieval.errors import ConfigError, MegatronRetrievalError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.testing.tiny_starts import write_starts

INTERFACE = "megatron_retrieval.applications.interface"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a random retriever, as `encoder`, and a random reader, as `reader`."""
    folder = write_starts(tmp_path_factory.mktemp("starts"))
    (folder / "retriever").rename(folder / "encoder")
    (folder / "extractive").rename(folder / "reader")
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(folder)
    with process_topology(ParallelConfig(device="cpu")):
        yield


@pytest.mark.parametrize("name", ["retriever", "reader"])
def test_the_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"{INTERFACE}.{name}"))
    assert result.attempted > 3
    assert not result.failed


def test_vectors_are_those_of_the_command(folder: Path, tmp_path: Path) -> None:
    words = ["--evidence", folder / "evidence", "--retriever", folder / "encoder", "--output", tmp_path / "embeddings"]
    succeed(command("tools/embed_evidence.py", *words, "--embedding-dtype", "float32"))
    stored = EmbeddingStore(tmp_path / "embeddings").read(0, 22).numpy()
    retriever = Retriever.load("encoder").index(folder / "passages.jsonl")
    assert retriever.session is not None
    passages = retriever.session.evidence.passages(range(len(stored)))
    np.testing.assert_allclose(retriever.embed(passages), stored, rtol=1e-5, atol=1e-6)
    questions = ["where is key1", "where is key2"]
    scores = retriever.embed(questions, is_query=True) @ stored.T
    found = retriever.search(questions, k=3)
    best = [[passages[row].id for row in np.argsort(-line)[:3]] for line in scores]
    assert [[passage.id for passage in line] for line in found] == best


PROGRAM = """
import json, sys
from megatron_retrieval import Reader, Retriever

pairs = [(f"where is key{n}", f"the box of key{n} stands in the room") for n in range(6)]
retriever = Retriever.load("encoder", device="cpu", dtype="fp32").index([passage for _, passage in pairs], bm25=True)
questions = [question for question, _ in pairs]
retriever.fit(pairs, epochs=4, batch_size=6, lr=1e-3, seed=3, hidden_dropout=0, attention_dropout=0)
found = retriever.search(questions, k=3, by="hybrid")
answers = Reader.load("reader").answer_all(questions, found)
retriever.save(sys.argv[1])
vectors = retriever.embed(questions, is_query=True).tolist()
ids = [[passage.id for passage in line] for line in found]
print(json.dumps({"ids": ids, "vectors": vectors, "answers": [answer.text for answer in answers]}))
"""


def test_ranks_share_the_work(folder: Path) -> None:
    """Of torchrun's processes each gets the whole result, which is that of one process."""
    (folder / "program.py").write_text(PROGRAM)
    outputs = []
    for num_processes in (1, 2):
        words = command(folder / "program.py", folder / f"saved{num_processes}", num_processes=num_processes)
        result = run(words, cwd=folder)
        assert result.returncode == 0, result.stderr
        outputs += [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(outputs) == 3
    for other in outputs[1:]:
        assert (other["ids"], other["answers"]) == (outputs[0]["ids"], outputs[0]["answers"])
        np.testing.assert_allclose(other["vectors"], outputs[0]["vectors"], rtol=1e-4, atol=1e-5)


def test_what_is_wrong_is_said() -> None:
    retriever = Retriever.load("encoder")
    with pytest.raises(ConfigError, match="nothing to search yet"):
        retriever.search(["where"])
    retriever.index(["the box of key1", "the box of key2"])
    with pytest.raises(ConfigError, match="list of questions"):
        retriever.search("where")
    with pytest.raises(ConfigError, match="indexed for dense only"):
        retriever.search(["where"], by="hybrid")
    with pytest.raises(ConfigError, match=r"no setting 'weight_decoy'\. Perhaps you meant 'weight_decay'"):
        retriever.fit([("where is key1", "the box of key1")], weight_decoy=0.1)
    with pytest.raises(ConfigError, match="epochs"):
        retriever.fit([("where is key1", "the box of key1")], epochs="many")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pair 2: expected"):
        retriever.fit([("where", "box"), ("where",)])
    with pytest.raises(ConfigError, match="passage 2: expected a text"):
        retriever.index(["box", 3])  # type: ignore[list-item]
    with pytest.raises(MegatronRetrievalError, match="no checkpoint here"):
        Retriever.load("nowhere")
    with pytest.raises(ConfigError, match="2 questions, but passages for 1"):
        Reader.load("reader").answer_all(["where", "what"], [["box"]])


def test_the_package_costs_nothing_until_it_is_used() -> None:
    words = "import sys, megatron_retrieval; assert 'torch' not in sys.modules; print(megatron_retrieval.__version__)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", words], check=True, env=environment, timeout=60)


def test_a_folder_that_learn_keeps_is_opened(folder: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    for number in range(3):
        (documents / f"{number}.txt").write_text(f"the box of key{number} stands in the corner")
    learn = ("-m", "megatron_retrieval", "learn", documents, "--encoder", folder / "encoder", "--device", "cpu")
    succeed(command(*learn))
    found = Retriever.load(tmp_path / "documents.learned").search(["where is key2"], k=1, by="bm25")
    assert found[0][0].id.startswith("2.txt")
