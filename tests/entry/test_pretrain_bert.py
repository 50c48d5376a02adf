"""BERT's pretraining as its user runs it: one process and two, killed and resumed, started from others' weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from programs import command, losses, refuse, succeed

from megatron_retrieval.data.stores.corpus_builder import CorpusBuilderConfig, build_corpus
from megatron_retrieval.testing.runs import rewind, saved_weights
from megatron_retrieval.testing.tiny import write_tiny_corpus
from megatron_retrieval.testing.tiny_hf import VOCABULARY, save_with_vocabulary, tiny_masked_lm

SHAPE = "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --max-position-embeddings 32".split()
TINY = "--seq-length 32 --no-tensorboard --log-interval 1 --global-batch-size 8 --lr 1e-3 --valid-fraction 0.1".split()
UNCHANGED = "--train-iters 1 --lr 0".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


def _words(corpus: Path, output: Path, *flags: object, num_processes: int = 1) -> list[str]:
    """A tiny run; the shape is left to the flags."""
    job = ("pretrain_bert.py", *TINY, "--data-path", corpus, "--output-dir", output)
    return command(*job, *flags, num_processes=num_processes)


def test_one_process_and_two(corpus: Path, tmp_path: Path) -> None:
    flags = [*SHAPE, "--train-iters", "5", "--hidden-dropout", "0", "--attention-dropout", "0"]
    said = succeed(_words(corpus, tmp_path / "single", *flags))
    assert "sequences: " in said
    flags += ["--tensor-model-parallel-size", "2"]
    succeed(_words(corpus, tmp_path / "double", *flags, num_processes=2))
    expected = losses(tmp_path / "single")
    assert [iteration for iteration, _ in expected] == [1, 2, 3, 4, 5]
    assert [loss for _, loss in losses(tmp_path / "double")] == pytest.approx([loss for _, loss in expected], rel=1e-4)


def test_resumed_run_equals_the_uninterrupted_one(corpus: Path, tmp_path: Path) -> None:
    flags = [*SHAPE, "--train-iters", "12", "--save-interval", "5"]
    succeed(_words(corpus, tmp_path / "whole", *flags, "--save", tmp_path / "a"))
    words = _words(corpus, tmp_path / "resumed", *flags, "--save", tmp_path / "b", "--load", tmp_path / "a")
    rewind(tmp_path / "a", 5)
    log = succeed(words)
    assert "resumed" in log
    assert "other settings" not in log
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")[5:]
    first, second = (saved_weights(tmp_path / name / "iter_0000012") for name in "ab")
    assert all(first[name].equal(second[name]) for name in first | second)
    other = write_tiny_corpus(tmp_path, num_sentences=5)
    refuse([*words, "--data-path", str(other)], "learned from something else: --data-path")
    assert f"--data-path {other} (was {corpus})" in succeed([*words, "--data-path", str(other), "--accept-changes"])


def test_starts_from_an_imported_masked_lm(tmp_path: Path) -> None:
    """Shape, vocabulary and weights are the import's: a step at learning rate 0 leaves them as they are."""
    save_with_vocabulary(tiny_masked_lm(), tmp_path / "hf")
    job = ("tools/import_checkpoint.py", "--format", "hf-masked-lm", "--input", tmp_path / "hf", "--device", "cpu")
    succeed(command(*job, "--output", tmp_path / "bert"))
    (tmp_path / "text.txt").write_text(" ".join(VOCABULARY[5:15]) + ".\n")
    corpus, vocabulary = tmp_path / "corpus", tmp_path / "hf" / "vocab.txt"
    source = (str(tmp_path / "text.txt"),)
    build_corpus(CorpusBuilderConfig(input=source, output=str(corpus), vocab_file=str(vocabulary)))
    start = ("--valid-fraction", 0, "--pretrained-checkpoint", tmp_path / "bert")
    succeed(_words(corpus, tmp_path / "run", *start, *UNCHANGED, "--save", tmp_path / "a"))
    before, after = saved_weights(tmp_path / "bert" / "iter_0000000"), saved_weights(tmp_path / "a" / "iter_0000001")
    assert all(before[name].equal(after[name]) for name in before | after)
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (settings["num-layers"], settings["hidden-size"], settings["vocab-size"]) == (3, 32, 100)
    refuse(_words(write_tiny_corpus(tmp_path / "bert"), tmp_path / "other", *start), "--vocab-file")
    assert not (tmp_path / "other").exists()


def test_starts_from_a_dual_encoder(corpus: Path, tmp_path: Path) -> None:
    """Its encoder, under a new head."""
    job = ("pretrain_ict.py", *SHAPE, "--data-path", corpus, "--output-dir", tmp_path / "ict", "--no-tensorboard")
    lengths = ("--retriever-seq-length", 32, "--query-seq-length", 16, "--biencoder-shared-query-context-model")
    succeed(command(*job, *lengths, "--global-batch-size", 8, *UNCHANGED, "--save", tmp_path / "ict"))
    start = ("--pretrained-checkpoint", tmp_path / "ict")
    succeed(_words(corpus, tmp_path / "run", *start, *UNCHANGED, "--save", tmp_path / "a"))
    before, after = saved_weights(tmp_path / "ict" / "iter_0000001"), saved_weights(tmp_path / "a" / "iter_0000001")
    encoder = {name: value for name, value in after.items() if name.startswith("bert.")}
    assert {f"towers.shared.{name}" for name in encoder} == before.keys()
    assert all(before[f"towers.shared.{name}"].equal(value) for name, value in encoder.items())


BAD_SETTINGS = {
    "no corpus": (["--data-path", "{folder}/absent"], "absent: no corpus here"),
    "sequences longer than positions": (["--seq-length", "33"], "--seq-length 33 exceeds"),
    "sequences shorter than a sentence": (["--seq-length", "4"], "sequences of 4 tokens are too short"),
    "everything held out": (["--valid-fraction", "0.9999999"], "there is no text to train on"),
    "mask share": (["--mask-prob", "1"], "--mask-prob 1.0: must be above 0 and below 1"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_end_with_one_sentence(corpus: Path, tmp_path: Path, case: str) -> None:
    flags, message = BAD_SETTINGS[case]
    refuse(_words(corpus, tmp_path / "run", *SHAPE, *[flag.format(folder=tmp_path) for flag in flags]), message)
    assert not (tmp_path / "run").exists()


def test_damaged_corpus_is_refused(corpus: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "corpus"
    shutil.copytree(corpus, damaged)
    largest = max(damaged.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-8])
    refuse(_words(damaged, tmp_path / "run", *SHAPE), str(damaged))
    assert not (tmp_path / "run").exists()
