"""Embed, evaluate, compare and search as a user starts them, on one and on two processes."""

from __future__ import annotations

import json
import random
import re
import subprocess
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from transformers import BertTokenizerFast

from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.neighbors import NeighborStore
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe
from megatron_retrieval.testing.tiny_hf import save_with_vocabulary, tiny_bert, tiny_cross_encoder

NUM_PASSAGES, NUM_QUESTIONS = 1100, 30


def _run(*words: object, num_processes: int = 1) -> subprocess.CompletedProcess[str]:
    return programs.run(programs.command(*words, num_processes=num_processes))


def _succeed(*words: object, num_processes: int = 1) -> str:
    result = _run(*words, num_processes=num_processes)
    assert result.returncode == 0, result.stderr
    return result.stdout


def _words(random_words: random.Random, count: int) -> str:
    return " ".join(f"w{random_words.randrange(45)}" for _ in range(count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder, passages of random words, and questions that are passages with one word of the text as answer;
    embedded by one process and by two."""
    folder = tmp_path_factory.mktemp("line")
    chosen = random.Random(0)
    passages = [(_words(chosen, 2), _words(chosen, 12)) for _ in range(NUM_PASSAGES)]
    rows = [f"{number}\t{text}\t{title}" for number, (title, text) in enumerate(passages, 1)]
    (folder / "psgs.tsv").write_text("\n".join(["id\ttext\ttitle", *rows]) + "\n")
    questions = [
        {
            "question": f"{title} {text}",
            "answers": [" ".join(text.split()[:3])],
            "positive_ctxs": [{"title": title, "text": text, "passage_id": str(number)}],
        }
        for number, (title, text) in enumerate(passages[:NUM_QUESTIONS], 1)
    ]
    (folder / "questions.json").write_text(json.dumps(questions))
    save_with_vocabulary(tiny_bert(), folder / "hf")
    _succeed("tools/import_checkpoint.py", "--format", "hf-bert", "--input", folder / "hf", "--output", folder / "ck")
    save_with_vocabulary(tiny_cross_encoder(), folder / "hf-ce")
    job = ["tools/import_checkpoint.py", "--format", "hf-cross-encoder", "--input", folder / "hf-ce"]
    _succeed(*job, "--output", folder / "reranker")
    vocab = folder / "hf" / "vocab.txt"
    _succeed(
        "tools/build_evidence.py", "--input", folder / "psgs.tsv", "--output", folder / "ev", "--vocab-file", vocab
    )
    for num_processes in (1, 2):
        output = folder / f"embeddings{num_processes}"
        job = ["tools/embed_evidence.py", "--evidence", folder / "ev", "--retriever", folder / "ck", "--output", output]
        _succeed(*job, "--device", "cpu", "--embedding-dtype", "float32", num_processes=num_processes)
        inputs = [
            "--evidence",
            folder / "ev",
            "--embeddings",
            output,
            "--retriever",
            folder / "ck",
            "--verify-embeddings",
        ]
        asked = ["--questions", folder / "questions.json", "--output-dir", folder / f"run{num_processes}"]
        job = ["tasks/main.py", "--task", "retriever-evaluate", *inputs, *asked, "--topk", "20", "1", "--device", "cpu"]
        _succeed(*job, "--rerank", folder / "reranker", "--rerank-topk", "5", num_processes=num_processes)
    return folder


def test_two_processes_write_what_one_writes(folder: Path) -> None:
    names = [
        {path.name for path in (folder / f"embeddings{number}").iterdir()} - {"config.yaml", "run_record.json"}
        for number in (1, 2)
    ]
    assert names[0] == names[1] == {"manifest.json", "shard-00000.bin", "shard-00001.bin", "shard-00002.bin"}
    for name in sorted(names[0] - {"manifest.json"}):
        assert (folder / "embeddings1" / name).read_bytes() == (folder / "embeddings2" / name).read_bytes()
    for name in ("metrics.json", "ranks.jsonl", "results.json", "run.trec"):
        assert (folder / "run1" / name).read_text() == (folder / "run2" / name).read_text()


def test_evaluation_folder_is_complete(folder: Path) -> None:
    metrics = json.loads((folder / "run1" / "metrics.json").read_text())
    assert metrics["num_questions"] == metrics["num_gold_questions"] == NUM_QUESTIONS
    assert metrics["recall@20"] >= metrics["gold_recall@20"] > 0.1  # far above chance (0.02)
    assert metrics["recall@1_ci95"][0] <= metrics["recall@1"] <= metrics["recall@1_ci95"][1]
    assert (metrics["answer_match"], metrics["match_title"], metrics["question_stride"]) == ("string", False, 1)
    reranker = json.loads((folder / "reranker" / "iter_0000000" / "manifest.json").read_text())
    assert (metrics["reranker_fingerprint"], metrics["rerank_topk"]) == (reranker["fingerprint"], 5)
    record = json.loads((folder / "run2" / "run_record.json").read_text())
    assert (record["world_size"], record["config"]["topk"]) == (2, [20, 1])
    results = json.loads((folder / "run1" / "results.json").read_text())
    assert [len(result["ctxs"]) for result in results] == [20] * NUM_QUESTIONS
    scores = [[float(passage["score"]) for passage in result["ctxs"]] for result in results]
    assert scores == [sorted(row, reverse=True) for row in scores]
    assert len((folder / "run1" / "run.trec").read_text().splitlines()) == 20 * NUM_QUESTIONS
    config = (folder / "run1" / "config.yaml").read_text()
    assert re.search(r"^question-stride: 1$", config, re.MULTILINE)


def test_runs_are_compared_in_pairs(folder: Path) -> None:
    job = ["tools/compare_runs.py", "--baseline", folder / "run1", "--candidate", folder / "run2", "--topk", "1", "20"]
    table = _succeed(*job, "--output", folder / "comparison.json")
    assert "recall@20" in table
    comparison = json.loads((folder / "comparison.json").read_text())
    assert comparison["num_questions"] == NUM_QUESTIONS
    assert comparison["recall@20"]["difference_ci95"] == [0.0, 0.0]


def test_chunks_of_a_language_model_and_their_neighbours(folder: Path) -> None:
    """Whose vocabulary is not the encoder's: keys are those that the encoder gives the chunks' text."""
    lines = (folder / "psgs.tsv").read_text().splitlines()[:61]
    (folder / "some.tsv").write_text("\n".join(lines) + "\n")
    bpe = write_byte_bpe(folder / "bpe")
    job = ["tools/build_chunks.py", "--input", folder / "some.tsv", "--output", folder / "chunks", "--vocab-file", bpe]
    _succeed(*job, "--retro-chunk-length", 16)
    words = ["--retriever", folder / "ck", "--output", folder / "keys", "--embedding-dtype", "float32", "--fp32"]
    _succeed("tools/embed_evidence.py", "--chunks", folder / "chunks", *words, "--device", "cpu")
    job = ["tools/find_neighbors.py", "--chunks", folder / "chunks", "--embeddings", folder / "keys"]
    _succeed(*job, "--output", folder / "neighbors", "--valid-fraction", 0, "--device", "cpu")
    chunks = ChunkStore(folder / "chunks")
    store = NeighborStore(folder / "neighbors", chunks)
    rows = np.arange(len(chunks))
    found = store.rows(rows, store.num_saved)
    assert len(chunks) > 100
    assert (found >= 0).all()
    own = chunks.groups[chunks.document_of(rows)]
    assert (chunks.groups[chunks.document_of(found)] != own[:, None]).all()
    assert (np.diff(store.distances(rows, store.num_saved).astype(float)) >= 0).all()
    keys = EmbeddingStore(folder / "keys").vectors(0, len(chunks)).double()
    nearest = (keys - keys[torch.from_numpy(found[:, 0])]).square().sum(1)
    assert nearest.numpy() == pytest.approx(store.distances(rows, 1)[:, 0], rel=1e-3, abs=1e-6)
    result = _run("tools/embed_evidence.py", *words, "--device", "cpu")
    assert "give either --evidence (passages) or --chunks" in result.stderr


def test_search_prints_the_best_passages(folder: Path) -> None:
    question = json.loads((folder / "questions.json").read_text())[4]
    inputs = ["--evidence", folder / "ev", "--embeddings", folder / "embeddings1", "--retriever", folder / "ck"]
    command = [
        "-m",
        "megatron_retrieval.cli",
        "search",
        question["question"],
        *inputs,
        "--device",
        "cpu",
        "--color",
        "True",
    ]
    printed = _succeed(*command, "--answer", question["answers"][0], "--topk", "3")
    assert re.findall(r"^(\d)\. ", printed, re.MULTILINE) == ["1", "2", "3"]
    assert "\033[1m" in printed


def test_what_is_asked_for_at_the_import_stays_with_the_encoder(folder: Path) -> None:
    job = ["tools/import_checkpoint.py", "--format", "hf-bert", "--input", folder / "hf"]
    assert "does not state its pooling: the vector of [CLS] is assumed" in _run(*job, "--output", folder / "cls").stderr
    asked = ["--pooling", "mean", "--query-prefix", "w1 w2: ", "--passage-prefix", "w3: "]
    _succeed(*job, *asked, "--output", folder / "mean")
    manifest = json.loads((folder / "mean" / "iter_0000000" / "manifest.json").read_text())["config"]
    assert [manifest[name.removeprefix("--")] for name in asked[::2]] == asked[1::2]
    inputs = ["--evidence", folder / "ev", "--retriever", folder / "mean"]
    _succeed("tools/embed_evidence.py", *inputs, "--output", folder / "mean-embeddings", "--device", "cpu", "--fp32")
    refused = _run("-m", "megatron_retrieval.cli", "search", "w1", *inputs, "--embeddings", folder / "embeddings1")
    assert refused.returncode == 1
    assert "encoder" in refused.stderr

    model, tokenizer = tiny_bert(), BertTokenizerFast(vocab=str(folder / "hf" / "vocab.txt"))
    lines = [line.split("\t") for line in (folder / "psgs.tsv").read_text().splitlines()[1:4]]
    batch = tokenizer([f"w3: {title}[SEP]{text}" for _, text, title in lines], padding=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = model(**{**batch, "token_type_ids": None}).last_hidden_state, batch.attention_mask[:, :, None]
    expected = (states * mask).sum(1) / mask.sum(1)
    found = EmbeddingStore(folder / "mean-embeddings").vectors(0, 3).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_embeddings_of_another_evidence_are_refused(folder: Path) -> None:
    lines = (folder / "psgs.tsv").read_text().splitlines()
    (folder / "fewer.tsv").write_text("\n".join(lines[:100]) + "\n")
    vocab, other = folder / "hf" / "vocab.txt", folder / "other"
    _succeed("tools/build_evidence.py", "--input", folder / "fewer.tsv", "--output", other, "--vocab-file", vocab)
    inputs = ["--evidence", other, "--embeddings", folder / "embeddings1", "--retriever", folder / "ck"]
    asked = ["--questions", folder / "questions.json", "--output-dir", folder / "refused", "--device", "cpu"]
    result = _run("tasks/main.py", "--task", "retriever-evaluate", *inputs, *asked)
    assert result.returncode == 1
    assert re.fullmatch(r"error: The embeddings in .* are of evidence .*\n", result.stderr), result.stderr
    assert not (folder / "refused").exists()
