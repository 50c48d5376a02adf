"""Retriever and reader trained together by adapters, over bases that their checkpoints refer to."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.registry import describe_reader
from megatron_retrieval.retrieval.index_versions import IndexVersions
from megatron_retrieval.testing.runs import END_TO_END, curve, rewind, train
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_starts import write_starts

SETTINGS = (
    "--global-batch-size 4 --micro-batch-size 2 --num-passages 4 --lr 1e-2 --lr-decay-style constant --seed 5 "
    "--lr-warmup-fraction 0 --max-answer-length 4 --index-refresh-interval 2 --embedding-dtype float32 "
    "--no-tensorboard --log-interval 1 --save-interval 2 --hidden-dropout 0 --attention-dropout 0 "
    "--lora-rank 2 --lora-alpha 4"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_starts(tmp_path_factory.mktemp("starts"))


def _words(folder: Path, reader: str, run: str, *more: str) -> list[str]:
    words = ["--retriever", f"{folder}/retriever", "--reader", f"{folder}/{reader}", "--evidence", f"{folder}/evidence"]
    words += ["--train-data", f"{folder}/biencoder.json", "--output-dir", f"{folder}/{run}", *SETTINGS.split(), *more]
    return [*words, "--save", f"{folder}/{run}/saved", "--device", "cpu"]


def _load(topology: ProcessTopology, folder: str) -> list[int]:
    """How many tensors of adapters both parts have as other jobs load them, and the encoder of the last index."""
    run = Path(folder) / "extractive-run"
    saved, versions = resolve_checkpoint(run / "saved"), IndexVersions(run / "index")
    retrievers = [saved / "retriever", versions.snapshot(versions.complete()[-1])]
    models = [DUAL_ENCODER.load(path, topology).model for path in retrievers]
    models.append(describe_reader(saved / "reader")[1].load(topology))
    return [sum(".adapter." in name for name, _ in model.named_parameters()) for model in models]


def test_both_parts_are_adapted_saved_and_resumed(folder: Path) -> None:
    """Beside adapters, a part of a checkpoint holds the reader's head, which is trained; the rest is in the bases."""
    words = _words(folder, "extractive", "extractive-run", "--objective", "individual-topk", "--train-iters", "4")
    train(END_TO_END, words)
    losses = curve(folder / "extractive-run")
    saved = folder / "extractive-run" / "saved"
    expected = load_file(saved / "iter_0000004" / "retriever" / "model.tp0of1.safetensors")
    assert expected
    assert all(".adapter." in name for name in expected)
    reader = load_file(saved / "iter_0000004" / "reader" / "model.tp0of1.safetensors")
    assert {name for name in reader if ".adapter." not in name} == {"span.weight", "span.bias"}
    for part, start in (("retriever", "retriever"), ("reader", "extractive")):
        base = read_manifest(saved / "iter_0000004" / part).base
        assert base is not None
        assert base.fingerprint == read_manifest(resolve_checkpoint(folder / start)).fingerprint
    assert min(run_on_ranks(_load, 1, str(folder))[0]) > 0
    rewind(saved, 2)
    train(END_TO_END, [*words, "--load", str(saved)])
    found = load_file(saved / "iter_0000004" / "retriever" / "model.tp0of1.safetensors")
    assert all(found[name].equal(expected[name]) for name in expected)
    assert curve(folder / "extractive-run")[-2:] == losses[-2:]


def test_one_of_them_over_two_ranks(folder: Path) -> None:
    """The reader by adapters, the retriever in full: at any layout the same."""
    more = ("--objective", "emdr2", "--train-iters", "2", "--lora-parts", "reader")
    train(END_TO_END, _words(folder, "fusion", "single", *more))
    train(END_TO_END, _words(folder, "fusion", "double", *more), 2, 2)
    assert curve(folder / "double") == pytest.approx(curve(folder / "single"), rel=1e-3)
    saved = resolve_checkpoint(folder / "single" / "saved")
    stored = load_file(saved / "retriever" / "model.tp0of1.safetensors")
    assert not any(".adapter." in name for name in stored)
    assert len(stored) > 10
    reader = load_file(saved / "reader" / "model.tp0of1.safetensors")
    assert reader
    assert all(".adapter." in name for name in reader)
