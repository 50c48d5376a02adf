"""Recall during training: one curve at every layout, and training that does not notice it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.exact.sharded import ShardedIndex
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.retriever_finetune import RetrieverFinetuneConfig, build
from megatron_retrieval.retrieval.embedder import embed_evidence, embed_in_memory
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.testing.embedded import embed
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import random_texts, tiny_dual_encoder_config, write_tiny_evidence

TINY = (
    "--num-layers 1 --hidden-size 32 --num-attention-heads 4 --max-position-embeddings 32 --init-method-std 0.2 "
    "--retriever-seq-length 16 --query-seq-length 16 --no-tensorboard --log-interval 1 --eval-interval 4 "
    "--global-batch-size 8 --lr 3e-3 --lr-warmup-iters 2 --pooling mean --biencoder-shared-query-context-model "
    "--no-retriever-score-scaling --train-iters 10"
).split()
MEASURED = ["valid_recall@1", "valid_recall@5", "valid_gold_recall@1", "valid_gold_recall@5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, evidence of three shards, and the folder `single` of a run in one process."""
    folder = tmp_path_factory.mktemp("recall")
    write_tiny_evidence(folder)
    run_on_ranks(_train, 1, _words(folder, "single", *_recall(folder)))
    return folder


def _words(folder: Path, name: str, *flags: str, dropout: float = 0.0) -> list[str]:
    words = [*TINY, "--train-data", f"{folder}/biencoder.json", "--vocab-file", f"{folder}/vocab.txt"]
    words += ["--hidden-dropout", str(dropout), "--attention-dropout", str(dropout)]
    return [*words, "--output-dir", f"{folder}/{name}", *flags]


def _recall(folder: Path) -> list[str]:
    questions = ["--eval-questions", f"{folder}/biencoder.json", "--eval-evidence", f"{folder}/evidence"]
    return [*questions, "--eval-topk", "5", "1"]


def _train(topology: ProcessTopology, words: list[str]) -> None:
    build(parse_config(RetrieverFinetuneConfig, words), topology).fit()


def _lines(folder: Path, key: str) -> dict[int, Any]:
    """Iteration -> what was logged under `key`."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {record["iteration"]: record[key] for record in records if key in record}


def test_the_curve_begins_before_training_and_rises(folder: Path) -> None:
    for name in MEASURED:
        curve = _lines(folder / "single", name)
        assert list(curve) == [0, 4, 8, 10]
        assert curve[10] > curve[0] + 0.15
    summary = json.loads((folder / "single" / "metrics.json").read_text())
    counts = ("iteration", "recall_num_questions", "recall_num_gold_questions", "recall_num_passages")
    assert [summary[name] for name in counts] == [10, 22, 22, 1122]
    for name in MEASURED:
        assert summary[name] == _lines(folder / "single", name)[10]
        low, high = summary[f"{name}_ci95"]
        assert low <= summary[name] <= high


@pytest.mark.parametrize("tensor_parallel", [1, 2], ids=["DP 2", "TP 2"])
def test_two_ranks_measure_what_one_measures(folder: Path, tensor_parallel: int) -> None:
    name = f"tp{tensor_parallel}"
    run_on_ranks(_train, 2, _words(folder, name, *_recall(folder)), tensor_model_parallel_size=tensor_parallel)
    for measure in MEASURED:
        assert _lines(folder / name, measure) == _lines(folder / "single", measure)
    single, several = (json.loads((folder / run / "metrics.json").read_text()) for run in ("single", name))
    assert several == single


def test_training_does_not_notice(folder: Path) -> None:
    """Losses with dropout and sampled negatives, bit for bit."""
    run_on_ranks(_train, 1, _words(folder, "measured", *_recall(folder), dropout=0.2))
    run_on_ranks(_train, 1, _words(folder, "plain", dropout=0.2))
    losses = _lines(folder / "plain", "loss")
    assert list(losses) == list(range(1, 11))
    assert _lines(folder / "measured", "loss") == losses


def test_a_resumed_run_does_not_measure_where_it_resumes(folder: Path) -> None:
    flags = [*_recall(folder), "--save", f"{folder}/saved", "--load", f"{folder}/saved", "--save-interval", "2"]
    run_on_ranks(_train, 1, _words(folder, "resumed", *flags))
    (folder / "saved" / "latest_checkpointed_iteration.txt").write_text("6\n")
    run_on_ranks(_train, 1, _words(folder, "again", *flags))
    whole, again = (_lines(folder / name, "valid_recall@5") for name in ("resumed", "again"))
    assert list(whole) == [0, 4, 8, 10]
    assert again == {iteration: whole[iteration] for iteration in (8, 10)}


def test_a_part_of_questions_and_passages(folder: Path) -> None:
    flags = [*_recall(folder), "--eval-max-questions", "5", "--eval-max-passages", "100", "--train-iters", "1"]
    run_on_ranks(_train, 2, _words(folder, "part", *flags))
    summary = json.loads((folder / "part" / "metrics.json").read_text())
    assert (summary["recall_num_questions"], summary["recall_num_passages"]) == (5, 100)


def test_frozen_passages_are_searched_as_they_are_on_disk(folder: Path) -> None:
    apart = "--no-biencoder-shared-query-context-model"
    start = [*_recall(folder), apart, "--pretrained-checkpoint", f"{folder}/towers", "--freeze-passage-encoder"]
    given = [*start, "--eval-embeddings", f"{folder}/vectors", "--save", f"{folder}/kept", "--save-interval", "2"]
    towers = [apart, "--train-iters", "1", "--save", f"{folder}/towers"]
    run_on_ranks(_train, 1, _words(folder, "towers-run", *towers))
    run_on_ranks(embed, 1, folder / "evidence", folder / "towers", folder / "vectors")
    run_on_ranks(_train, 1, _words(folder, "made", *start))
    run_on_ranks(_train, 2, _words(folder, "given", *given))
    for measure in MEASURED:
        curve = _lines(folder / "given", measure)
        assert curve == _lines(folder / "made", measure)
        assert curve[10] > curve[0]
    # a resumed run has another encoder of questions
    (folder / "kept" / "latest_checkpointed_iteration.txt").write_text("6\n")
    run_on_ranks(_train, 1, _words(folder, "resumed-given", *given, "--load", f"{folder}/kept"))
    assert _lines(folder / "resumed-given", MEASURED[0])[10] == _lines(folder / "made", MEASURED[0])[10]
    # it is these vectors that are searched
    for shard in (folder / "vectors").glob("*.bin"):
        shard.write_bytes(bytes(shard.stat().st_size))
    run_on_ranks(_train, 1, _words(folder, "nothing", *given[:-4]))
    assert len(set(_lines(folder / "nothing", MEASURED[1]).values())) == 1
    with pytest.raises(ConfigError, match="--eval-embeddings stay right only where --freeze-passage-encoder"):
        parse_config(RetrieverFinetuneConfig, [word for word in _words(folder, "", *given) if "freeze" not in word])


def _search_both(topology: ProcessTopology, folder: str) -> list[Any]:
    """Whether memory and disk answer alike, over how many rows, how many of them this rank holds, and how many rows
    the answers name."""
    evidence = EvidenceStore(f"{folder}/evidence")
    model = DualEncoder(tiny_dual_encoder_config(), topology).eval()
    text_format = TextFormatConfig(retriever_seq_length=12)
    job = EmbeddingJob(
        evidence=evidence,
        encode=model.encode_passages,
        text_format=text_format,
        encoder_fingerprint="",
    )
    memory = embed_in_memory(job, model.dimension, topology)
    store = embed_evidence(job, f"{folder}/vectors{topology.world_size}-{topology.tp_size}", topology)
    with torch.no_grad():
        queries = model.encode_queries(random_texts(9, 6, seed=3))
    results = [index.search(queries, 20) for index in (memory, ShardedIndex(store, topology))]
    same = results[0].rows.equal(results[1].rows) and results[0].scores.equal(results[1].scores)
    return [same, memory.num_rows, len(memory._local._source), len(np.unique(results[0].rows))]


@pytest.mark.parametrize(
    ("num_ranks", "tensor_parallel", "held"), [(1, 1, [1122]), (2, 1, [512, 610]), (4, 2, [256, 256, 305, 305])]
)
def test_memory_and_disk_hold_the_same_vectors(
    folder: Path, num_ranks: int, tensor_parallel: int, held: list[int]
) -> None:
    ranks = run_on_ranks(_search_both, num_ranks, str(folder), tensor_model_parallel_size=tensor_parallel)
    assert [rank[:2] for rank in ranks] == [[True, 1122]] * num_ranks
    assert [rank[2] for rank in ranks] == held
    assert ranks[0][3] > 20
