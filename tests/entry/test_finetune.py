"""The fine-tuning task as its user runs it: killed, resumed, stopped by a signal, given bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_retrieval.testing.tiny import write_tiny_dpr

ROOT = Path(__file__).parents[2]
TINY = (
    "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --max-position-embeddings 32 --retriever-seq-length 32 "
    "--query-seq-length 16 --no-tensorboard --log-interval 1 --global-batch-size 8 --lr 1e-3 --save-interval 5"
).split()


def command(folder: Path, *flags: str, num_processes: int = 1) -> list[str]:
    """The words of a tiny run over data in `folder`, under python or torchrun."""
    data, vocab = write_tiny_dpr(folder)
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    words = [*launcher, "tasks/main.py", "--task", "retriever-finetune", *TINY]
    return [*words, "--train-data", str(data), "--vocab-file", str(vocab), *flags]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)


def wait_for_step(metrics: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Return once the run has logged `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be interrupted"
        if metrics.exists() and metrics.read_text().count("\n") >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"no step {step} within two minutes")


def losses(folder: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["iteration"], record["loss"]) for record in records]


def test_killed_and_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = command(tmp_path, "--train-iters", "150", "--output-dir", f"{tmp_path}/whole", "--save", f"{tmp_path}/a")
    assert run(whole).returncode == 0
    flags = ["--output-dir", f"{tmp_path}/killed", "--save", f"{tmp_path}/b", "--load", f"{tmp_path}/b"]
    killed = command(tmp_path, "--train-iters", "150", *flags)
    process = subprocess.Popen(killed, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(tmp_path / "killed" / "metrics.jsonl", 12, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b" / "iter_0000150").exists()
    resumed = run(killed)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed" in resumed.stderr
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    first, second = (load_file(tmp_path / name / "iter_0000150" / "model.tp0of1.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stop_signal_saves_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    flags = ["--train-iters", "100000", "--output-dir", f"{tmp_path}/run", "--save", f"{tmp_path}/a"]
    words = command(tmp_path, *flags, "--save-interval", "1000000")
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(tmp_path / "run" / "metrics.jsonl", 3, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == 0
    last = int((tmp_path / "a" / "latest_checkpointed_iteration.txt").read_text())
    assert losses(tmp_path / "run")[-1][0] == last
    assert json.loads((tmp_path / "run" / "run_record.json").read_text())["finished"] is False


def test_two_processes_under_torchrun(tmp_path: Path) -> None:
    flags = ["--train-iters", "5", "--hidden-dropout", "0", "--attention-dropout", "0"]
    single = run(command(tmp_path, *flags, "--output-dir", f"{tmp_path}/single"))
    assert single.returncode == 0, single.stderr
    double = run(command(tmp_path, *flags, "--output-dir", f"{tmp_path}/double", num_processes=2))
    assert double.returncode == 0, double.stderr
    expected = [loss for _, loss in losses(tmp_path / "single")]
    assert [loss for _, loss in losses(tmp_path / "double")] == pytest.approx(expected, rel=1e-4)


def test_failing_rank_ends_the_job_with_its_error(tmp_path: Path) -> None:
    words = command(tmp_path, "--output-dir", f"{tmp_path}/run", num_processes=2)
    words[words.index("--train-data") + 1] = f"{tmp_path}/absent.json"
    result = run(words)
    assert result.returncode != 0
    assert "absent.json: cannot be read (No such file or directory)" in result.stderr


BAD_INPUT = {
    "no such checkpoint": (["--pretrained-checkpoint", "{folder}/absent"], r"absent: no checkpoint here"),
    "mistyped load": (["--load", "{folder}/absent", "--save", "{folder}/a"], r"absent: no checkpoint here"),
    "nothing to start from": (["--vocab-file", "None"], "nothing to start from"),
    "no positive batch size": (["--global-batch-size", "0"], "--global-batch-size 0: must be at least 1"),
    "two precisions": (["--bf16", "--fp16"], "--bf16 and --fp16 exclude each other"),
    "odd tensor-parallel size": (["--tensor-model-parallel-size", "2"], "does not divide the number of processes"),
    "unknown yaml key": (["--config", "{folder}/job.yaml"], "job.yaml:1: unknown key 'learning-rate'"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_settings_end_with_one_sentence(tmp_path: Path, case: str) -> None:
    (tmp_path / "job.yaml").write_text("learning-rate: 1\n")
    flags, message = BAD_INPUT[case]
    words = command(tmp_path, "--output-dir", f"{tmp_path}/run", *[flag.format(folder=tmp_path) for flag in flags])
    result = run(words)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_shape_or_damaged(tmp_path: Path) -> None:
    saved = run(command(tmp_path, "--train-iters", "1", "--output-dir", f"{tmp_path}/run", "--save", f"{tmp_path}/a"))
    assert saved.returncode == 0, saved.stderr
    other = [*TINY, "--pretrained-checkpoint", f"{tmp_path}/a", "--ffn-hidden-size", "24"]
    shape = run(command(tmp_path, *other, "--output-dir", f"{tmp_path}/other"))
    assert shape.returncode == 1
    assert "does not fit the model: full tensor of shape" in shape.stderr
    weights = tmp_path / "a" / "iter_0000001" / "model.tp0of1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    cut = run(command(tmp_path, "--pretrained-checkpoint", f"{tmp_path}/a", "--output-dir", f"{tmp_path}/other"))
    assert cut.returncode == 1
    assert "the file is damaged or cut off" in cut.stderr
    assert not (tmp_path / "other").exists()
