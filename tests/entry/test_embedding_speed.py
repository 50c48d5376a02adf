"""The benchmarks of embedding run, on tiny encoders: vectors agree, and each is timed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from programs import ROOT, command, refuse, run

from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.testing.tiny import write_tiny_evidence

SHAPE = ("--num-layers", 2, "--hidden-size", 32, "--num-attention-heads", 2, "--vocab-size", 100)


def test_rate_of_a_random_encoder() -> None:
    size = ("--num-passages", 9, "--num-tokens", 7, "--num-rounds", 2, "--micro-batch-size", 4, "--device", "cpu")
    # small ones: a CPU that emulates products of bf16 makes a thousandth of the operations
    matrices = ("--matrix-sizes", 64, 128)
    result = run(command("benchmarks/embedding_rate.py", *SHAPE, *size, *matrices, "--bf16", "--allow-slow-dtype"))
    assert result.returncode == 0, result.stderr
    assert re.search(r"^passages a second +[\d,]+$", result.stdout, re.MULTILINE)
    share = re.search(r"^share +(\d\.\d\d)$", result.stdout, re.MULTILINE)
    assert share is not None
    assert 0 <= float(share[1]) < 1
    cosine = re.search(r"float32 +([\d.]+)$", result.stdout, re.MULTILINE)
    assert cosine is not None
    assert 0.99 < float(cosine[1]) < 1


def test_families_are_compared(tmp_path: Path) -> None:
    """That both sides give the same numbers is what the benchmark itself refuses to do without."""
    size = (*SHAPE[:-2], "--vocab-size", 400, "--num-passages", 8, "--depth", 4, "--num-rounds", 1)
    evidence = write_tiny_evidence(tmp_path, 10)
    for families, more in ((("roberta", "modernbert"), ()), (("mpnet", "modernbert"), ("--rerank",))):
        job = ("benchmarks/family_speed.py", "--evidence", evidence, "--families", *families, *size, *more)
        result = run(command(*job))
        assert result.returncode == 0, result.stderr
        for family in families:
            assert re.search(rf"^{family} +\d+ +\d+ +\d+\.\d\d ", result.stdout, re.MULTILINE)


def test_operations_of_bert_base() -> None:
    """By hand: 12 layers of 24 x 768 x 768 for each of 128 tokens, and 4 x 128 x 128 x 768 for their attention."""
    operations = runpy.run_path(str(ROOT / "benchmarks" / "embedding_rate.py"))["operations"]
    assert operations(BertConfig(), 128) == 12 * (128 * 24 * 768 * 768 + 4 * 128 * 128 * 768)


def test_nothing_to_embed_is_refused(tmp_path: Path) -> None:
    refuse(command("benchmarks/embedding_rate.py", "--num-passages", 0), "--num-passages")
    missing = ("--evidence", tmp_path, "--retriever", tmp_path, "--model", tmp_path)
    refuse(command("benchmarks/embedding_speed.py", *missing, "--num-rounds", 0), "--num-rounds")
