"""What a plan says is what can be computed by hand, what models have, and what files are long."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_retrieval.applications.plan import costs
from megatron_retrieval.applications.plan.config import PlanConfig
from megatron_retrieval.applications.plan.plan import make_plan
from megatron_retrieval.applications.plan.rates import _line
from megatron_retrieval.applications.plan.retro_costs import reading_parameters
from megatron_retrieval.applications.plan.steps import gather_seconds, reduce_seconds
from megatron_retrieval.applications.plan.units import duration, size
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.retro import RetroConfig
from megatron_retrieval.testing.tiny import write_tiny_evidence

WIKIPEDIA = 21_015_324
#: nothing of the machine that the test runs on is in these
HARDWARE = ("--host-memory-gb", "512", "--disk-gb", "1000", "--workers", "16")


def _plan(*words: object, passages: int = WIKIPEDIA) -> Any:
    return make_plan(parse_config(PlanConfig, ["--passages", str(passages), *HARDWARE, *map(str, words)]))


def test_the_database_of_a_retro_by_hand() -> None:
    """Wikipedia's 3.3 billion tokens in 3.2 million articles, keys of 768 numbers."""
    words = ("--retro-tokens", 3.3e9, "--retro-document-tokens", 1031.25, "--num-queries", 1024)
    plan = _plan("--gpus", 4, *words, "--encode-passages-per-second", 1000, "--search-rows-per-second", 1e9)
    found = plan.retro
    assert found.num_chunks == 51_562_500 + 1_600_000
    assert found.chunk_bytes == pytest.approx(6.6e9 + 4 * 53_162_500 + 40 * 3.2e6)
    assert found.key_bytes == 53_162_500 * 768 * 2
    assert found.neighbor_bytes == 53_162_500 * 20 * 7
    # a passage has 140 tokens and three more, a chunk 75 of the encoder's
    assert found.embed_seconds == pytest.approx(53_162_500 * 64 * 1.17 / (4 * 1000 * 143))
    assert found.join_seconds == pytest.approx(53_162_500**2 / (4 * 1e9 * 1024))
    assert any("53,162,500 chunks" in what for what, _, _ in plan.rows())
    # SmolLM2-135M, of which layers 6 to 30 pass gradients; nine layers read 8,192 tokens of neighbours
    shape = RetroConfig(num_query_groups=3)
    trained = reading_parameters(shape)
    assert found.state_bytes == 16 * trained + 4 * 134_515_008
    kept = 2 * (34 - 2) * 576 + 2 * 576
    memory = 8192 * 4 * (576 + 9 * 2 * 192)
    assert found.activation_bytes == (2048 * 25 + 8192 * 2) * kept + memory + 2 * 2048 * 49152 * 4
    assert not _plan("--gpus", 4, *words, "--retro-base", "none").retro.state_bytes
    assert _plan("--gpus", 4).retro is None


def test_wikipedia_by_hand() -> None:
    found = _plan("--gpus", 16, "--nodes", 2).estimate
    assert found.version_bytes == 21_015_324 * 768 * 2 == 32_279_537_664
    assert size(found.version_bytes) == "32.3 GB"
    assert found.rank_index_bytes == 1_313_458 * 768 * 2  # 1,313,457.75 rows on each
    # 660 bytes of text, 140 tokens of 2 bytes, 5 offsets and 2 entries of the table of ids of 8 bytes
    assert found.evidence_bytes == 21_015_324 * (660 + 280 + 40 + 16)
    # 33,554,432 scores (of 1,313,458 rows for 64 questions there are more), with their maxima
    assert found.search_buffer_bytes == 33_554_432 * 5
    retriever = 2 * (108_891_648 + 70 * 768)
    assert (found.encoder_bytes, found.checkpoint_bytes) == (4 * retriever, 12 * (retriever + 222_903_552))
    # encoders of three versions, and of two for each of four checkpoints
    with_training = 4 * found.checkpoint_bytes + (3 + 2 * 4) * found.encoder_bytes
    assert found.disk_bytes(3, 4) == found.evidence_bytes + 3 * found.version_bytes + with_training
    kept = _plan("--gpus", 16, "--nodes", 2, "--keep-last", 3, "--keep-index-versions", 4)
    assert kept.to_json()["estimate"]["disk_bytes"] == found.disk_bytes(5, 4)
    assert "checkpoints: 3 kept, one being written" in {name for name, _, _ in kept.rows()}
    single = _plan("--embedding-dtype", "float32").estimate
    assert single.version_bytes == single.rank_index_bytes == 2 * found.version_bytes


def test_hours_follow_from_rates() -> None:
    rates = ("--encode-passages-per-second", 1000, "--build-passages-per-second", 2000)
    rates += ("--train-passages-per-second", 250)
    plan = _plan(*rates, "--search-rows-per-second", 10**8, "--gpus", 8, "--disk-megabytes-per-second", 500)
    assert plan.estimate.embed_seconds == pytest.approx(21_015_324 / 8000)
    assert plan.estimate.build_seconds == pytest.approx(21_015_324 / (2000 * 16))
    assert plan.estimate.search_seconds == pytest.approx(2_626_916 / 1e8)
    assert plan.estimate.streamed_seconds == pytest.approx(32_279_537_664 / 5e8)
    assert [duration(seconds) for seconds in (5400, 90, 2.5, 0.0263)] == [
        "1.5 hours",
        "1.5 minutes",
        "2.5 s",
        "26.3 ms",
    ]
    assert plan.estimate.refresh_seconds == plan.estimate.embed_seconds
    beside = _plan(*rates, "--gpus", 8, "--num-embedding-ranks", 2).estimate
    assert beside.refresh_seconds == pytest.approx(21_015_324 / 2000)
    assert beside.rank_index_bytes == 3_502_554 * 768 * 2  # on the six that train
    assert {rate.origin for name, rate in vars(plan.rates).items() if "seconds" not in name} == {"given"}
    batch = (*rates[:4], "--gpus", 8, "--reader", "none", "--global-batch-size", 64)
    assumed, given = (_plan(*batch, *more).step for more in ((), rates[4:]))
    assert assumed is not None
    assert given is not None
    assert given.compute == pytest.approx(assumed.compute * (1000 / 3) / 250)


def test_assumed_rates_follow_from_operations() -> None:
    rates = ("--peak-teraflops", 100, "--utilisation", 0.5, "--fp32-teraflops", 10, "--memory-gb-per-second", 1000)
    plan = _plan(*rates, "--mean-tokens", 97, "--num-queries", 2)
    # a layer has 12 x 768^2 weights; attention's two products take 4 x 100 x 768 for each of 100 tokens
    # and of the last layer [CLS] alone needs more than keys and values
    operations = 11 * 100 * (2 * 12 * 768**2 + 4 * 100 * 768) + 100 * 4 * 768**2 + 20 * 768**2 + 4 * 100 * 768
    assert plan.rates.encode.value == pytest.approx(5e13 / operations)
    assert plan.rates.search.value == pytest.approx(1e12 / (768 * 2))  # limited by memory: 2 bytes
    many = _plan(*rates, "--num-queries", 4000)
    assert many.rates.search.value == pytest.approx(1e13 / (2 * 4000 * 768))


def test_tensor_parallel_ranks_share_state_and_what_layers_keep() -> None:
    # of 34 bytes a token and unit of the width, 24 are cut: those of heads and of inner units
    assert costs.layer_activation_bytes(5, 8, half_precision=True, tp_size=4) == 5 * 8 * (10 + 24 // 4)
    words = ("--gpus", 8, "--reader", "t5-3b", "--bf16", "--recompute-granularity", "full", "--gpu-memory-gb", 40)
    whole, cut = (_plan(*words, "--tensor-model-parallel-size", size) for size in (1, 4))
    weights = 2 * costs.bert_parameters(BertConfig()) + 2_851_598_336
    assert (whole.estimate.state_bytes, cut.estimate.state_bytes) == (18 * weights, 18 * weights // 4)
    assert whole.problems
    assert not cut.problems
    with pytest.raises(ConfigError, match="--tensor-model-parallel-size 4 does not divide 6 processes that train"):
        _plan("--gpus", 8, "--num-embedding-ranks", 2, "--tensor-model-parallel-size", 4)


def test_a_dual_encoders_step_by_hand() -> None:
    """Batch 4,096 on 64 GPUs: 64 questions on each, four passes (gradient caching), a ring at the network's speed."""
    assert gather_seconds(800.0, 4, 100.0) == 6.0  # all but its own fourth
    assert reduce_seconds(800.0, 4, 100.0) == 12.0
    assert reduce_seconds(800.0, 1, 100.0) == 0.0
    hardware = (
        "--gpus",
        64,
        "--nodes",
        8,
        "--peak-teraflops",
        100,
        "--utilisation",
        0.5,
        "--network-gb-per-second",
        25,
    )
    plan = _plan("--reader", "none", "--global-batch-size", 4096, *hardware)
    bert, encoder = BertConfig(), plan.config.encoder
    forward = costs.vector_operations(encoder, 64) + 2 * costs.vector_operations(encoder, 256)
    assert plan.step.compute == pytest.approx(4 * 64 * forward / 50e12)
    assert plan.step.gather == pytest.approx(4096 * 3 * 768 * 4 * 63 / 64 / 25e9)
    assert plan.step.reduce == pytest.approx(2 * 4 * 2 * costs.bert_parameters(bert) * 63 / 64 / 25e9)
    assert (plan.step.search, plan.step.layers, plan.staleness) == (0, 0, [])
    one_node = _plan("--reader", "none", "--global-batch-size", 4096, "--gpus", 8, "--nvlink-gb-per-second", 100)
    assert one_node.step.gather == pytest.approx(4096 * 3 * 768 * 4 * 7 / 8 / 100e9)
    assert _plan("--reader", "none").step is None


def test_more_embedding_ranks_refresh_sooner_and_train_slower() -> None:
    words = ("--gpus", 64, "--nodes", 8, "--bf16", "--encode-passages-per-second", 1000, "--global-batch-size", 64)
    plan = _plan(*words, "--topk", 50)
    assert [found.num_embedding_ranks for found in plan.staleness] == [1, 2, 4, 8, 16, 32]
    for found in plan.staleness:
        assert found.refresh_seconds == pytest.approx(WIKIPEDIA / 1000 / found.num_embedding_ranks)
        assert found.steps == pytest.approx(found.refresh_seconds * found.steps_per_second)
    # 64 questions on 63, 62, ... 32 copies: the slowest reads two of them
    assert plan.staleness[0].steps_per_second < 1 / plan.step.total
    beside = _plan(*words, "--topk", 50, "--num-embedding-ranks", 16)
    assert plan.staleness[4].steps_per_second == pytest.approx(1 / beside.step.total)
    assert len(plan.staleness_rows()) == len(plan.to_json()["staleness"]) == 6


def test_embedding_in_the_background_takes_memory_of_rank_0() -> None:
    plan = _plan("--gpus", 8, "--bf16", "--micro-batch-size", 16, "--retriever-seq-length", 256)
    # two towers of 108.9 million weights; 16 x 256 tokens with 6 x 768 units and 3,072 inner ones; CUDA itself
    weights, batch = 2 * costs.bert_parameters(BertConfig()), 16 * 256 * (6 * 768 + 3072)
    assert plan.estimate.background_bytes == 2 * (weights + batch) + 500_000_000
    (row,) = [row for row in plan.rows() if "background" in row[0]]
    assert row == (
        "embedding with --index-refresh-mode background",
        size(plan.estimate.background_bytes),
        "added on rank 0's GPU",
    )
    beside = _plan("--gpus", 8, "--num-embedding-ranks", 2)
    assert not [row for row in beside.rows() if "background" in row[0]]


def test_an_evidence_folder_is_as_long_as_foretold(tmp_path: Path) -> None:
    store = EvidenceStore(write_tiny_evidence(tmp_path))
    passages = store.passages(range(len(store)))
    text_bytes = sum(len(f"{passage.id}{passage.title}{passage.text}".encode()) for passage in passages) / len(store)
    tokens = sum(len(column.values) for column in store.token_columns(range(len(store)))) / len(store)
    files = [path for path in store.folder.iterdir() if path.name not in ("manifest.json", "vocab.txt")]
    foretold = costs.evidence_bytes(len(store), text_bytes, tokens, 99)
    assert sum(path.stat().st_size for path in files) == foretold + 5 * 8  # each column of offsets begins with a zero


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ("--disk-gb", 100, "--bf16", "--gpus", 4),
            r"Disk: 134\.4 GB are needed, 100\.0 GB are free; without refreshing .* 63\.8 GB",
        ),
        (
            ("--disk-gb", 150, "--embedding-dtype", "float32", "--bf16", "--gpus", 4),
            r"Disk: 231\.3 GB .*--embedding-dtype float16 needs 134\.4 GB, which fits",
        ),
        (("--gpu-memory-gb", 40, "--bf16"), r"GPU memory: .* of 40\.0 GB; --gpus 4 spread the vectors thinly enough;"),
        (
            ("--gpu-memory-gb", 24, "--gpus", 64),
            r"GPU memory: .*--bf16 needs 22\.\d GB, which fits",
        ),
        (
            ("--gpu-memory-gb", 20, "--gpus", 64, "--bf16"),
            r"GPU memory: 22\.\d GB .*--recompute-granularity full needs 1\d\.\d GB, which fits",
        ),
        (
            ("--gpu-memory-gb", 16, "--reader", "none"),
            r'GPU memory: 32\.4 GB .*--gpus 3 .*--index-factory "IVF65536,SQ8" needs 16\.5 GB on the host',
        ),
        (
            ("--gpus", 0, "--host-memory-gb", 64),
            r"Host memory: training needs 64\.8 GB of 64\.0 GB .*; train on GPUs\.",
        ),
        (
            ("--gpus", 0, "--host-memory-gb", 16, "--reader", "none"),
            r'Host memory: .* a search takes about 32 s; --nodes 3 hold them; --index-factory "OPQ96,IVF65536,PQ96"',
        ),
    ],
)
def test_what_does_not_fit_and_what_would(words: tuple[object, ...], problem: str) -> None:
    found = _plan(*words).problems
    assert len(found) == 1
    assert re.search(problem, found[0]), found[0]


def test_what_is_advised_fits() -> None:
    assert not _plan("--gpu-memory-gb", 40, "--bf16", "--gpus", 4).problems
    assert _plan("--gpu-memory-gb", 40, "--bf16", "--gpus", 3).problems
    assert not _plan("--gpus", 0, "--nodes", 3, "--host-memory-gb", 16, "--reader", "none").problems
    words = ("--gpu-memory-gb", 24, "--index-factory", "IVF16,SQ8")
    answering, training = _plan(*words, "--reader", "none"), _plan(*words)
    assert [problem.partition(":")[0] for problem in training.problems] == ["GPU memory"]  # it compares exactly
    assert not answering.problems
    assert ["vectors of exact" in str(plan.rows()) for plan in (answering, training)] == [False, True]


def test_an_approximate_index_is_counted() -> None:
    found = _plan("--index-factory", "OPQ48_192,IVF4096,PQ48", "--reader", "none").estimate
    # 48 bytes of code and 8 of row; a rotation, 4096 centroids of 192 dimensions and 256 codes in float32
    assert found.index_bytes == 21_015_324 * 56 + 4 * (768 * 192 + 4096 * 192 + 192 * 256)
    with pytest.raises(ConfigError, match="--index-factory IVF: faiss makes no such index"):
        _plan("--index-factory", "IVF")


def test_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match="--gpus 3 and --nodes 2: every node needs equally many"):
        _plan("--gpus", 3, "--nodes", 2)
    with pytest.raises(ConfigError, match="--num-embedding-ranks 2 of 2 processes leave none that trains"):
        _plan("--gpus", 2, "--num-embedding-ranks", 2)
    with pytest.raises(ConfigError, match="--measure needs passages: give --input"):
        _plan("--measure")
    with pytest.raises(ConfigError, match="--measure needs a vocabulary: give --vocab-file, or --retriever"):
        _plan("--measure", "--input", "psgs.tsv")
    with pytest.raises(ConfigError, match="--passages 0: must be at least 1"):
        _plan(passages=0)


def test_a_line_through_two_measurements() -> None:
    assert _line(100, 3.0, 300, 5.0) == (100.0, 2.0)
    assert _line(100, 1.0, 300, 1.0) == (300.0, 0.0)  # noise
    assert _line(100, 1.0, 300, 6.0) == (50.0, 0.0)  # nothing takes less than no time


def test_rates_are_measured_as_a_user_asks_for_them(tmp_path: Path) -> None:
    write_tiny_evidence(tmp_path, num_distractors=2500)
    shape = (
        "--num-layers 1 --hidden-size 32 --num-attention-heads 2 --max-position-embeddings 32 --retriever-seq-length 32"
    )
    words = [
        *("--passages", 100_000, "--measure", "--input", tmp_path / "passages.jsonl"),
        *("--vocab-file", tmp_path / "vocab.txt", "--gpus", 0, "--output-dir", tmp_path / "plan", "--reader", "none"),
    ]
    command = [sys.executable, "-m", "megatron_retrieval", "plan", *map(str, words), *shape.split()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "encoding: " in result.stdout
    assert result.stdout.count("(measured here)") == 5
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert plan["settings"]["mean-tokens"] == pytest.approx(6, abs=0.5)
    assert plan["estimate"]["version_bytes"] == 100_000 * 32 * 2
    assert all(rate["value"] > 0 for name, rate in plan["rates"].items() if "seconds" not in name)
