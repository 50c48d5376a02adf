"""ICT pretraining as its user runs it: one process and two, killed and resumed, given bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_retrieval.testing.tiny import write_tiny_corpus, write_tiny_dpr

ROOT = Path(__file__).parents[2]
TINY = (
    "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --max-position-embeddings 32 --retriever-seq-length 32 "
    "--query-seq-length 16 --no-tensorboard --log-interval 1 --global-batch-size 8 --lr 1e-3 --save-interval 5 "
    "--valid-fraction 0.1"
).split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


def command(corpus: Path, output: Path, *flags: str, num_processes: int = 1) -> list[str]:
    """The words of a tiny run, under python or torchrun."""
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    return [*launcher, "pretrain_ict.py", *TINY, "--data-path", str(corpus), "--output-dir", str(output), *flags]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)


def losses(folder: Path) -> list[float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


def test_one_process_and_two(corpus: Path, tmp_path: Path) -> None:
    flags = ["--train-iters", "5", "--hidden-dropout", "0", "--attention-dropout", "0"]
    single = run(command(corpus, tmp_path / "single", *flags))
    assert single.returncode == 0, single.stderr
    assert "blocks of" in single.stderr
    flags += ["--tensor-model-parallel-size", "2"]
    double = run(command(corpus, tmp_path / "double", *flags, num_processes=2))
    assert double.returncode == 0, double.stderr
    assert len(losses(tmp_path / "single")) == 5
    assert losses(tmp_path / "double") == pytest.approx(losses(tmp_path / "single"), rel=1e-4)
    metrics = json.loads((tmp_path / "single" / "metrics.json").read_text())
    assert {"valid_loss", "valid_accuracy", "valid_accuracy@5", "valid_accuracy@20"} <= metrics.keys()


def test_killed_and_resumed_run_equals_the_uninterrupted_one(corpus: Path, tmp_path: Path) -> None:
    iterations = ["--train-iters", "150"]
    whole = run(command(corpus, tmp_path / "whole", *iterations, "--save", f"{tmp_path}/a"))
    assert whole.returncode == 0, whole.stderr
    words = command(corpus, tmp_path / "killed", *iterations, "--save", f"{tmp_path}/b", "--load", f"{tmp_path}/b")
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics, deadline = tmp_path / "killed" / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 12:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no step 12 within two minutes"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b" / "iter_0000150").exists()
    resumed = run(words)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed" in resumed.stderr
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    first, second = (load_file(tmp_path / name / "iter_0000150" / "model.tp0of1.safetensors") for name in "ab")
    assert all(first[name].equal(second[name]) for name in first | second)
    other = run([*words, "--query-in-block-prob", "0.5", "--valid-fraction", "0.5"])
    assert other.returncode == 1
    assert "was saved with number of blocks" in other.stderr


def _without_second_sentence(folder: Path, corpus: Path) -> list[str]:
    return ["--data-path", str(write_tiny_corpus(folder, num_sentences=1))]


def _empty(folder: Path, corpus: Path) -> list[str]:
    (folder / "empty").mkdir()
    return ["--data-path", str(folder / "empty")]


def _all_held_out(folder: Path, corpus: Path) -> list[str]:
    return ["--valid-fraction", "0.9999999"]


def _other_vocabulary(folder: Path, corpus: Path) -> list[str]:
    """A checkpoint trained on questions, whose vocabulary is another one than the corpus's."""
    data, vocab = write_tiny_dpr(folder)
    words = [sys.executable, "tasks/main.py", "--task", "retriever-finetune", *TINY[: TINY.index("--valid-fraction")]]
    words += ["--train-data", str(data), "--vocab-file", str(vocab), "--train-iters", "1", "--save", f"{folder}/other"]
    trained = run([*words, "--output-dir", f"{folder}/other-run"])
    assert trained.returncode == 0, trained.stderr
    return ["--pretrained-checkpoint", f"{folder}/other"]


BAD_INPUT = {
    "empty folder": (_empty, "no corpus folder"),
    "no second sentence": (_without_second_sentence, "has a second sentence. Give longer documents"),
    "everything held out": (_all_held_out, "no document is left to train on. Lower --valid-fraction"),
    "other vocabulary": (_other_vocabulary, "--vocab-file"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_with_one_sentence(corpus: Path, tmp_path: Path, case: str) -> None:
    make, message = BAD_INPUT[case]
    result = run([*command(corpus, tmp_path / "run"), *make(tmp_path, corpus)])
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_starts_from_a_checkpoint(corpus: Path, tmp_path: Path) -> None:
    """Its weights, shape and layout; one step at learning rate 0 leaves them as they are."""
    first = run(command(corpus, tmp_path / "first", "--train-iters", "1", "--save", f"{tmp_path}/a"))
    assert first.returncode == 0, first.stderr
    words = [sys.executable, "pretrain_ict.py", "--data-path", str(corpus), "--no-tensorboard", "--global-batch-size"]
    words += ["4", "--pretrained-checkpoint", f"{tmp_path}/a", "--train-iters", "1", "--lr", "0"]
    second = run([*words, "--save", f"{tmp_path}/b", "--output-dir", f"{tmp_path}/second"])
    assert second.returncode == 0, second.stderr
    before, after = (load_file(tmp_path / name / "iter_0000001" / "model.tp0of1.safetensors") for name in "ab")
    assert all(before[name].equal(after[name]) for name in before | after)
